"""A job handed to a worker, what the worker does with it, and what it tells meanwhile.

A worker tells of events, each with the place of its job among the run's jobs:
("begun", place), ("at", place, task), ("steps", place, taken), ("more", place, steps),
("say", place, line), ("warn", place, text), ("record", place, JSON). What it ends with is
("record", place, JSON), or ("gone", place, why) or ("unwritten", place, why).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.errors import FileError
from retain.experiment.checkpoint import Checkpoint
from retain.experiment.config import Config
from retain.experiment.disk import LOCK
from retain.experiment.job import Job
from retain.experiment.learner import carry_out, described
from retain.experiment.machine import chosen_device, reproducible
from retain.experiment.progress import Watcher
from retain.experiment.record import Run
from retain.experiment.stage import Stage

TELL_EVERY = 0.5  # seconds between words on how far a job is
Event = tuple[Any, ...]
Hear = Callable[[Event], None]


class AbandonedError(BaseException):
    """The run that a worker works for is no more. No method that fails: nothing may catch it."""


@dataclass(frozen=True)
class Assignment:
    """A job for a worker, which goes on from the job's checkpoint where there is one.

    Attributes:
        config: of the run.
        place: of the job among the run's jobs.
        job: which one.
        folder: of the run, for checkpoints; None keeps none.
        owner: what the folder's lock file says: by it a worker knows the folder as the run's.
        threads: how many torch computes with, since numbers may depend on it.
        here: the folder that relative paths in the config start from.
    """

    config: Config
    place: int
    job: Job
    folder: Path | None
    owner: str = ""
    threads: int = field(default_factory=torch.get_num_threads)
    here: Path = field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        if self.folder is not None:
            object.__setattr__(self, "folder", self.folder.absolute())

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The job's checkpoint; None where none is kept, or the folder is not seen from here."""
        if self.folder is None or self.lock() != self.owner:
            return None
        return Checkpoint(self.folder, self.job, before=self._refuse_another)

    def _refuse_another(self) -> None:
        if self.lock() != self.owner:
            raise AbandonedError

    def lock(self) -> str | None:
        """What the folder's lock file says; None where there is none to be seen."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                return (self.folder / LOCK).read_text(encoding="utf-8")
        return None


class Telling(Watcher):
    """In a worker: passes on what a job does, and how many steps it took, twice a second."""

    def __init__(self, place: int, tell: Hear, is_wanted: Callable[[], bool]) -> None:
        self.place = place
        self.tell = tell
        self.is_wanted = is_wanted
        self.count = 0
        self.told = time.monotonic()

    def more(self, steps: int) -> None:
        """Pass it on."""
        self.tell(("more", self.place, steps))

    def at(self, job: str, task: str) -> None:
        """Pass the task on."""
        self.flush()
        self.tell(("at", self.place, task))

    def step(self, loss: Tensor) -> None:
        """Count; from time to time tell, and stop if nobody wants it any more."""
        self.count += 1
        if time.monotonic() - self.told >= TELL_EVERY:
            self.flush()
            if not self.is_wanted():
                raise AbandonedError

    def say(self, line: str) -> None:
        """Pass it on, after the steps so far."""
        self.flush()
        self.tell(("say", self.place, line))

    def flush(self) -> None:
        """Tell of the steps that were taken since the last time."""
        self.told = time.monotonic()
        if self.count:
            self.tell(("steps", self.place, self.count))
        self.count = 0


class Worker:
    """Carries out assignments; keeps the stage for the next one of the same run."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.asked: tuple[Config, Path] | None = None

    def do(self, assignment: Assignment, tell: Hear, is_wanted: Callable[[], bool]) -> Event:
        """What a job ended with, which is still to be told; torch and the process are as before.

        Args:
            assignment: the job.
            tell: hears of everything else.
            is_wanted: whether the run is still there.

        Raises:
            AbandonedError: it is not.
        """
        place = assignment.place
        watch = Telling(place, tell, is_wanted)
        tell(("begun", place))
        events: list[Event] = []

        def keep(run: Run) -> None:
            watch.flush()
            events.append(("record", place, json.dumps(run.to_json())))
            if run.status == "running":
                tell(events[-1])

        with _within(assignment.here), _threads(assignment.threads):
            try:
                stage = self._staged(assignment)
                checkpoint = assignment.checkpoint
            except (Exception, SystemExit) as error:  # data or a model that is not there
                return ("gone", place, described(error))
            stage = replace(stage, watch=watch)
            with reproducible(stage.device), _warnings_told(place, tell):
                try:
                    carry_out(assignment.job, stage, checkpoint, resume=True, keep=keep)
                except FileError as error:
                    return ("unwritten", place, str(error))
        return events[-1]

    def _staged(self, assignment: Assignment) -> Stage:
        asked = (assignment.config, assignment.here)
        if self.stage is None or self.asked != asked:
            self.stage = None  # its memory first
            config = assignment.config
            if multiprocessing.current_process().daemon:  # which may have no processes of its own
                config = replace(config, loaders=0)
            device = chosen_device(config.device)
            with reproducible(device), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # whoever began the run was told when it read them
                self.stage = Stage.of(config, device, Watcher())
            self.asked = asked
        return self.stage


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    """Within it relative paths start from `folder`, if it is seen from here."""
    try:
        before = Path.cwd()
        os.chdir(folder)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _warnings_told(place: int, tell: Hear) -> Iterator[None]:
    """Within it warnings go where the run is, each once."""
    told: set[str] = set()

    def show(message: Warning | str, *_where: Any, **_more: Any) -> None:
        text = str(message)
        if text not in told:
            told.add(text)
            tell(("warn", place, text))

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield
