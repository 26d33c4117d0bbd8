"""A comparison of methods on tasks: what is asked, how it is carried out, and what came out."""

from retain.experiment.config import Config
from retain.experiment.results import Results, Run
from retain.experiment.running import Interrupted, UnwrittenError, run

__all__ = ["Config", "Interrupted", "Results", "Run", "UnwrittenError", "run"]
