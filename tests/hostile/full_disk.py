"""A disk that fills up: a memory that is saved, a run and its report, on a tmpfs of a few MB.

python -m tests.hostile --only disk --long
"""

from __future__ import annotations

import random
import shutil
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retain
from retain import report
from retain.errors import RetainError
from retain.experiment import Config, Results, run
from retain.experiment.progress import Watcher
from tests.hostile.values import Tally

MB = 1 << 20
SIZE = 24 * MB


class NoTmpfsError(Exception):
    """It may not be mounted here."""


@contextmanager
def small_disk(folder: Path, size: int = SIZE) -> Iterator[Path]:
    """A file system of so many bytes.

    Raises:
        NoTmpfsError: it may not be mounted.
    """
    place = folder / "small"
    place.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
            capture_output=True,
            check=False,
            text=True,
        )
    except OSError as error:
        raise NoTmpfsError(f"mount: {error}") from None
    if mounted.returncode:
        raise NoTmpfsError(mounted.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def try_full_disk(count: int, seed: int, folder: Path) -> Tally:
    """So many times on a disk with a random rest of room: a third each saved, run and reported."""
    dice, tally = random.Random(seed), Tally()
    with small_disk(folder) as disk:
        saved, ran = _Saving(disk), _Running(disk, folder)
        for number in range(count):
            (saved.once, ran.once, ran.report_once)[number % 3](dice, tally)
    return tally


def filled(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        for _ in range(max(shutil.disk_usage(disk).free - left, 0) // 4096):
            file.write(bytes(4096))
    return ballast


def _told(tally: Tally, error: Exception) -> bool:
    """Whether an error says that it is the disk; counts it."""
    if not isinstance(error, RetainError):
        said = "".join(traceback.format_exception(error, limit=-3))
        tally.surprise("foreign traceback", said)
        return False
    if "space" not in str(error) and "MB left" not in str(error):
        tally.surprise("refused without a sentence", str(error))
        return False
    tally["refused"] += 1
    return True


class _Saving:
    """A memory whose file is there already."""

    def __init__(self, disk: Path) -> None:
        self.disk, self.path = disk, disk / "memory.safetensors"
        self.memory = retain.MAS(nn.Linear(500, 500))
        self.memory.observe(torch.randn(2, 500), progress=False).consolidate()
        self.memory.save(self.path)
        self.number = 1.0

    def once(self, dice: random.Random, tally: Tally) -> None:
        tally["tried"] += 1
        before, self.number = self.path.read_bytes(), self.number + 1
        self.memory.strength = self.number
        ballast = filled(self.disk, int(dice.uniform(0, 1.5) * len(before)))
        try:
            self.memory.save(self.path)
        except Exception as error:
            if _told(tally, error) and self.path.read_bytes() != before:
                tally.surprise("lost", "the file that was there before")
        else:
            written = retain.load(self.path, nn.Linear(500, 500)).strength
            kind = "accepted unchanged" if written == self.number else "lost"
            tally[kind] += 1
        ballast.unlink()
        tally["left behind"] += len(list(self.disk.glob(".*.tmp")))


class _Running:
    """A run that is stopped by a full disk, and gone on with when there is room again."""

    def __init__(self, disk: Path, folder: Path) -> None:
        self.disk, self.out = disk, disk / "out"
        self.config = Config(
            tasks="digits", methods=("finetune", "mas", "ewc"), samples_per_class=4,
            classes_per_task=5, epochs=1, batch_size=4, device="cpu",
        )  # fmt: skip
        self.numbers = self._numbers(run(self.config, out=folder / "whole", progress=False))
        self.steps = 1

    def _numbers(self, results: Results) -> Any:
        return [(one.method, one.accuracy) for one in results.runs]

    def once(self, dice: random.Random, tally: Tally) -> None:
        """The disk is filled after a random step, or before the first."""
        tally["tried"] += 1
        ballast, refused = _Filling(self.disk, dice), False
        try:
            if dice.random() < 0.2:
                ballast.fill()
            results = run(self.config, out=self.out, progress=ballast)
        except Exception as error:
            refused = _told(tally, error)
            ballast.path.unlink(missing_ok=True)
            begun = (self.out / "results.json").exists()
            results = run(self.config, out=self.out, resume=begun, progress=False)
        else:
            ballast.path.unlink(missing_ok=True)
        if self._numbers(results) != self.numbers:
            tally.surprise("lost", "numbers of a run")
        elif not refused:
            tally["accepted unchanged"] += 1
        tally["left behind"] += sum(len(list(self.out.rglob(name))) for name in (".*",))
        shutil.rmtree(self.out)

    def report_once(self, dice: random.Random, tally: Tally) -> None:
        """The report of a whole run is made on what is left of the disk."""
        tally["tried"] += 1
        run(self.config, out=self.out, progress=False)
        before = (self.out / "results.json").read_bytes()
        ballast = filled(self.disk, int(dice.uniform(0, 0.4) * MB))
        try:
            report.write(self.out)
        except Exception as error:
            _told(tally, error)
        else:
            tally["accepted unchanged"] += 1
        if (self.out / "results.json").read_bytes() != before:
            tally.surprise("lost", "results.json")
        ballast.unlink()
        tally["left behind"] += len(list(self.out.rglob(".*")))
        shutil.rmtree(self.out)


class _Filling(Watcher):
    """Fills the disk while a run is at work."""

    def __init__(self, disk: Path, dice: random.Random) -> None:
        self.disk, self.path = disk, disk / "ballast"
        self.after, self.left = dice.randrange(1, 7), int(dice.uniform(0, 0.1) * MB)
        self.lines = 0

    def fill(self) -> None:
        filled(self.disk, self.left)

    def say(self, line: str) -> None:
        """A task was learned."""
        self.lines += 1
        if self.lines == self.after:
            self.fill()
