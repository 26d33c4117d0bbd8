"""Who carries out the jobs of a run, where that is not the process that was asked: workers."""
