"""A run that is killed again and again ends with the numbers of one that was not."""

import multiprocessing
import random
import shutil
import time

from retain.experiment import Results, run
from retain.experiment.checkpoint import Checkpoint

from .tiny import accuracies, tiny

METHODS = ("ebll", "imm-mode", "ewc", "si")
KILLS = 10
# What a run imports: a process then starts at once, and is not killed while it still does that.
PRELOADED = ["retain.experiment", "torch._dynamo", "sklearn.datasets"]


def asked():
    return tiny(methods=METHODS, samples_per_class=8)


def run_to_the_end(folder, resume):
    import torch

    torch.set_num_threads(1)
    run(asked(), out=folder, resume=resume, progress=False)


def started(folder):
    """A process of its own that goes on with the run in `folder`, or begins it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    resume = (folder / "results.json").exists()
    process = context.Process(target=run_to_the_end, args=(folder, resume))
    process.start()
    return process


def test_killed_at_ten_random_moments(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    started(whole).join()  # the first one also waits for the imports
    shutil.rmtree(whole)
    begin = time.monotonic()
    process = started(whole)
    process.join()
    duration = time.monotonic() - begin
    assert process.exitcode == 0
    expected = accuracies(Results.read(whole))
    assert len(expected) == len(METHODS)

    moments = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = started(folder)
        time.sleep(moments.uniform(0, duration / 2))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was done before: check it, and begin another one
            assert accuracies(Results.read(folder)) == expected
            shutil.rmtree(folder)
        else:
            kills += 1
    process = started(folder)
    process.join()
    assert process.exitcode == 0
    results = Results.read(folder)
    assert [record.status for record in results.runs] == ["done"] * len(METHODS)
    assert accuracies(results) == expected
    assert not list(folder.glob("checkpoints/*"))


def test_killed_between_a_record_and_the_end_of_its_checkpoint(tmp_path, monkeypatch):
    """The record says that the job is done: its checkpoint goes when the run is taken up again."""
    with monkeypatch.context() as killed:
        killed.setattr(Checkpoint, "remove", lambda _self: None)
        run(asked(), out=tmp_path, progress=False)
    assert list(tmp_path.glob("checkpoints/*"))
    run(asked(), out=tmp_path, resume=True, progress=False)
    assert not list(tmp_path.glob("checkpoints/*"))
