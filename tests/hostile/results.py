"""results.json and checkpoints, changed and damaged in every way, read by all that read them.

python -m tests.hostile.results --count 2000
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import traceback
import warnings
from pathlib import Path

import pytest
import torch

from retain import report
from retain.errors import RetainError
from retain.experiment import Config, Interrupted, Results, run
from retain.experiment import learner as learner_module
from retain.experiment.checkpoint import Checkpoint, Standing
from retain.experiment.disk import DIGEST
from retain.experiment.job import jobs
from tests.hostile.values import FORGED, NOTED, Tally, changed, damaged

PAGE_EVERY = 60  # a page takes longer than all else
RESUME_EVERY = 30


def asked() -> Config:
    """Two methods on two tasks, in a second."""
    return Config(
        tasks="digits", methods=("finetune", "mas"), samples_per_class=8, classes_per_task=5,
        epochs=1, batch_size=8, device="cpu",
    )  # fmt: skip


def finished(folder: Path) -> bytes:
    """The results.json of a run."""
    run(asked(), out=folder, progress=False)
    return (folder / "results.json").read_bytes()


def stopped(folder: Path) -> Checkpoint:
    """The checkpoint of the run's second job after its first task."""
    real, calls = learner_module.learn, []

    def learn(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == 3:  # the first task is trained once for both
            raise KeyboardInterrupt
        real(*args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(learner_module, "learn", learn)
        with pytest.raises(Interrupted):
            run(asked(), out=folder, progress=False)
    return Checkpoint(folder, jobs(Results.read(folder).config)[1])


def try_results(count: int, seed: int, folder: Path) -> Tally:
    """Mutants of a results.json: read by the runner and by the report, shown, resumed."""
    dice, tally = random.Random(seed), Tally()
    whole = finished(folder)
    for number in range(count):
        forging = dice.random() < 0.6
        if forging:
            mutant = changed(copy.deepcopy(json.loads(whole)), dice)
            text = json.dumps(mutant).encode()
        else:
            text = damaged(whole, dice)
        (folder / "results.json").write_bytes(text)
        try:
            with warnings.catch_warnings(record=True) as noted:
                warnings.simplefilter("always")
                _read(folder, number)
        except RetainError:
            tally["refused"] += 1
        except Exception:
            tally.surprise("foreign traceback", traceback.format_exc(limit=-3))
        else:
            _look_at(text, whole, forging, [str(one.message) for one in noted], tally)
    return tally


def _look_at(text: bytes, whole: bytes, forging: bool, noted: list[str], tally: Tally) -> None:
    """How a mutant that was read ended: other values are told of, or nobody could know."""
    mutant = json.loads(text)
    if {**mutant, DIGEST: ""} == {**json.loads(whole), DIGEST: ""}:
        tally["accepted unchanged"] += 1
    elif any("was changed after it was written" in note for note in noted):
        tally[NOTED] += 1
    elif forging and not mutant.get(DIGEST):
        tally[FORGED] += 1
    else:
        tally.surprise("accepted with another value", repr(mutant)[:300])


def _read(folder: Path, number: int) -> None:
    errors = []
    try:
        report.table(folder)
        report.summary(folder)
        if number % PAGE_EVERY == 0:
            report.write(folder)
    except RetainError as error:
        errors.append(error)
    results = Results.read(folder)
    if number % RESUME_EVERY == 0:
        run(results.config, out=folder, resume=True, progress=False)
    if errors:
        raise errors[0]


def try_checkpoints(count: int, seed: int, folder: Path) -> Tally:
    """Mutants of a checkpoint: noticed, or the same to the last bit."""
    dice, tally = random.Random(seed), Tally()
    checkpoint = stopped(folder)
    whole, before = checkpoint.path.read_bytes(), checkpoint.load()
    assert before is not None
    for _ in range(count):
        checkpoint.path.write_bytes(damaged(whole, dice))
        try:
            after = checkpoint.load()
        except RetainError:
            tally["refused"] += 1
        except Exception:
            tally.surprise("foreign traceback", traceback.format_exc(limit=-3))
        else:
            if _same(before, after):
                tally["accepted unchanged"] += 1
            else:
                tally.surprise("accepted with another value", "a checkpoint")
    return tally


def _same(one: Standing, other: Standing | None) -> bool:
    if other is None or one.run != other.run:
        return False
    pairs = ((one.network, other.network), (one.method, other.method))
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


def main() -> None:
    """Try so many of each, and say how they ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for name, tried in (("results.json", try_results), ("checkpoints", try_checkpoints)):
        with tempfile.TemporaryDirectory() as folder:
            tally = tried(given.count, given.seed, Path(folder))
        print(f"{name}: tried {given.count:,}, {tally.line()}", *tally.kept, sep="\n", flush=True)


if __name__ == "__main__":
    main()
