"""`retain run`, `retain study` and `memory.save`, killed again and again by SIGKILL.

python -m tests.hostile --only run --only study --only save --long

A run or a study that was killed goes on to the numbers of one that was not. A file of a memory is
the last one or the one that was just written, whole. Nothing unfinished stays behind.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext, ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retain
from retain.errors import RetainError
from retain.experiment import Results
from tests.hostile.values import Tally

FEW = ("--samples-per-class", "4", "--batch-size", "4", "--epochs", "1", "--device", "cpu")
RUN = ("run", "--tasks", "digits", "--methods", "finetune,ewc,si,mas", *FEW)
STUDY = ("study", "table3", "--data", "digits", "--seeds", "0", *FEW)
# What a command imports: a process then begins at once, and is not killed while it still does that.
PRELOADED = ["retain.cli.app", "retain.report", "torch._dynamo", "sklearn.datasets", __name__]
UNFINISHED = (".*.tmp", ".retain-probe", ".lock", "checkpoints/*")
HELD = 200_000  # weights of the memory that is saved


def try_run(count: int, seed: int, folder: Path) -> Tally:
    """So many kills of `retain run`, each at a random moment."""
    return _kill(RUN, count, seed, folder)


def try_study(count: int, seed: int, folder: Path) -> Tally:
    """So many kills of `retain study`, each at a random moment."""
    return _kill(STUDY, count, seed, folder)


def try_save(count: int, seed: int, folder: Path) -> Tally:
    """So many kills of a process that saves one memory after another into one file."""
    dice, tally, path = random.Random(seed), Tally(), folder / "memory.safetensors"
    for _ in range(count):
        here, there = multiprocessing.Pipe(duplex=False)
        process = _begun(_save_for_ever, path, there)
        there.close()
        here.recv()  # the first one is begun
        here.recv()  # and written
        time.sleep(dice.uniform(0, 0.2))
        process.kill()
        process.join()
        _look_at_saved(path, list(_heard(here)), tally)
    memory, model = _memory(), _model()
    memory.save(path)
    retain.load(path, model)
    tally["left behind"] += len(list(folder.iterdir())) - 1
    return tally


# ---- commands ----


def _kill(line: tuple[str, ...], count: int, seed: int, folder: Path) -> Tally:
    dice, tally = random.Random(seed), Tally()
    _command([*line, "--out", str(folder / "first")]).join()  # also waits for the imports
    begin = time.monotonic()
    _command([*line, "--out", str(folder / "whole")]).join()
    duration = time.monotonic() - begin
    expected, out, waiting = _numbers(folder / "whole"), folder / "killed", 0
    while tally["tried"] < count or waiting:
        process = _command(_to_go_on(line, out))
        if tally["tried"] < count:
            process.join(dice.uniform(0, duration))
            process.kill()
        process.join()
        if process.exitcode == -9:
            tally["tried"] += 1
            waiting += 1
        elif process.exitcode == 0:
            right = _numbers(out) == expected
            tally["accepted unchanged" if right else "lost"] += waiting
            tally["left behind"] += sum(len(list(out.rglob(name))) for name in UNFINISHED)
            shutil.rmtree(out)
            waiting = 0
        else:
            tally.surprise("foreign traceback", f"exit code {process.exitcode} of {line}")
            shutil.rmtree(out)
            waiting = 0
    return tally


def _to_go_on(line: tuple[str, ...], out: Path) -> list[str]:
    """The command line with which a user would go on."""
    begun = any((out / name).exists() for name in ("results.json", "study.json"))
    return [*line, *(["--resume"] if begun else []), "--out", str(out)]


def _command(line: list[str]) -> BaseProcess:
    """A process that runs `retain` with this command line."""
    return _begun(_retain, line)


def _retain(line: list[str]) -> None:
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    from retain.cli.app import app

    sys.exit(app(line, prog_name="retain"))


def _numbers(out: Path) -> Any:
    """What must be the same in a run that was killed."""
    paths = [out / "results.json"]
    if (out / "study.json").exists():
        json.loads((out / "results.json").read_bytes())
        paths = sorted(out.glob("parts/*/results.json"))
    return [
        (path.parent.name if "parts" in path.parts else "", run.method, run.seed, run.accuracy)
        for path in paths
        for run in Results.read(path.parent).runs
    ]


# ---- a memory ----


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(HELD // 100, 100, bias=False)


def _memory() -> Any:
    model = _model()
    return retain.MAS(model).observe(torch.randn(2, HELD // 100), progress=False).consolidate()


def _save_for_ever(path: Path, told: Connection) -> None:
    torch.set_num_threads(1)
    memory, number = _memory(), 0
    while True:
        state = memory.state_dict()
        state["strength"] = float(number)
        state["tensors"]["importance.0"]["weight"].fill_(number)
        memory.load_state_dict(state)
        told.send(("begun", number))
        memory.save(path)
        told.send(("done", number))
        number += 1


def _heard(here: Connection) -> Any:
    while True:
        try:
            yield here.recv()
        except (EOFError, OSError):
            return


def _look_at_saved(path: Path, told: list[tuple[str, int]], tally: Tally) -> None:
    """The file is the last that was done, or the one that was begun after it."""
    tally["tried"] += 1
    done = max((number for what, number in told if what == "done"), default=0)
    begun = max((number for what, number in told if what == "begun"), default=0)
    try:
        memory = retain.load(path, _model())
    except RetainError as error:
        tally.surprise("lost", str(error))
        return
    values = [*{memory.strength, *memory.importance["weight"].unique().tolist()}]
    if len(values) == 1 and done <= values[0] <= max(begun, done):
        tally["accepted unchanged"] += 1
    else:
        tally.surprise("lost", f"{values[:3]} after {done}, with {begun} begun")


def _begun(work: Callable[..., None], *given: Any) -> BaseProcess:
    context: BaseContext = multiprocessing.get_context("forkserver")
    assert isinstance(context, ForkServerContext)
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=work, args=given)
    process.start()
    return process
