"""All jobs of a config, by whoever carries them out: resumable, interruptible."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from retain import arguments
from retain.closest import did_you_mean
from retain.errors import ConfigError, FileError, StateError
from retain.experiment.checkpoint import Checkpoint
from retain.experiment.config import Config
from retain.experiment.content import FILE, REMEDY
from retain.experiment.disk import LOCK, NotOwnedError, OwnedFolder
from retain.experiment.job import Job, jobs
from retain.experiment.learner import carry_out, steps_of
from retain.experiment.machine import (
    chosen_device,
    refuse_too_large,
    reproducible,
    worthwhile_threads,
)
from retain.experiment.progress import Watcher, watcher
from retain.experiment.record import Run
from retain.experiment.results import Results
from retain.experiment.run_folder import how_to_go_on, opened, remove_half_written
from retain.experiment.stage import Stage
from retain.experiment.strength_search import VALIDATION
from retain.experiment.workers.assignment import Assignment
from retain.experiment.workers.crew import Crew, Hearing, Workforce, crew
from retain.interrupts import uninterrupted
from retain.methods.method import allocated
from retain.models import TaskNetwork
from retain.models.build import SMALL
from retain.readable import memory_bytes
from retain.tasks import TaskSequence

LISTED = 20


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message that says how to go on."""


class WorkersLostError(StateError):
    """There are no workers any more; `__cause__` says why, without how to go on."""


class UnwrittenError(FileError):
    """The run's own files cannot be written; `__cause__` says why, without how to go on."""


def run(
    config: Config,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    progress: bool | Watcher = True,
    workers: int = 1,
    scheduler: str | None = None,
) -> Results:
    """The results of every job of `config`: each method, strength and seed on the tasks.

    Args:
        config: what to run.
        out: a folder for results.json (written after every task) and checkpoints; None keeps
            the results in memory only.
        resume: go on with the run in `out`; it ends with the accuracies of one that was never
            stopped.
        progress: show how far it is: a bar on a terminal, lines elsewhere; or who shall be told.
        workers: processes of this machine that carry out jobs side by side.
        scheduler: address of a Dask scheduler, whose workers then carry them out.

    Raises:
        ConfigError: something that cannot be carried out, found before anything is trained.
        FileError: data or results that cannot be read or written.
        Interrupted: Ctrl-C; what was finished is written.
        UnwrittenError: the disk is full, or the folder gone; what was finished is as it was.
        WorkersLostError: the scheduler is gone, or processes cannot be started.

    A method that fails is a failed run in the results, with its error; the others go on. Whoever
    carries out the jobs, the numbers are the same.

    Examples:
        >>> from retain.experiment import Config, run
        >>> config = Config("digits", methods=("mas",), epochs=1, batch_size=32)
        >>> [one.method for one in run(config, out="out", progress=False).runs]
        ['mas']
    """
    with crew(Workforce(workers=workers, scheduler=scheduler)) as hands:
        return run_by(hands, config, out=out, resume=resume, progress=progress)


def run_by(
    hands: Crew | None,
    config: Config,
    *,
    out: Path | str | None,
    resume: bool,
    progress: bool | Watcher,
) -> Results:
    """As `run`, with the jobs carried out by workers that are at hand; None is this process."""
    arguments.instance("config", config, Config, 'retain.experiment.Config("digits", …)')
    arguments.flag("resume", resume)
    if not isinstance(progress, Watcher):
        arguments.flag("progress", progress)
    folder = None if out is None else arguments.path("out", out, of="a folder")
    if resume and folder is None:
        raise ConfigError("resume=True needs out=, the folder of the run to continue.")
    device = chosen_device(config.device)
    refuse_too_large(config.image_size or 0, config.batch_size)
    with reproducible(device), contextlib.ExitStack() as held:
        watch = progress if isinstance(progress, Watcher) else watcher(progress)
        try:
            stage = Stage.of(config, device, watch)
        finally:
            watch.stop()
        config, sequence = stage.config, stage.sequence
        refuse_what_does_not_fit(config, sequence)
        _refuse_too_large_model(config, sequence)
        network = stage.network(config.seeds[0])
        results, ownership = Results(config), None
        if folder is not None:
            needed = _bytes_needed(network, len(sequence.tasks))
            results, ownership = held.enter_context(opened(folder, config, resume, needed))
            _refuse_other_runs(results, stage, folder / FILE)
        with worthwhile_threads(
            network, sequence.input_shape, config.batch_size, sequence.input_dtype
        ):
            _carry_out_all(stage, _Books(results, folder, resume, ownership), hands)
    return results


@dataclass(frozen=True)
class _Books:
    """Where the records of a run go."""

    results: Results
    folder: Path | None
    resume: bool
    ownership: OwnedFolder | None

    def checkpoint(self, job: Job) -> Checkpoint | None:
        if self.folder is None or self.ownership is None:
            return None
        return Checkpoint(self.folder, job, before=self.ownership.refuse_another)

    def record(self, place: int, run: Run) -> None:
        self.results.runs[place : place + 1] = [run]
        if self.folder is not None and self.ownership is not None:
            self.ownership.refuse_another()
            with uninterrupted():
                self.results.write(self.folder)


def _carry_out_all(stage: Stage, books: _Books, hands: Crew | None) -> None:
    finished = {place for place, run in enumerate(books.results.runs) if run.status == "done"}
    every = dict(enumerate(jobs(stage.config)))
    todo = {place: job for place, job in every.items() if place not in finished}
    for place in finished & every.keys():  # if it was killed before it could do that
        if checkpoint := books.checkpoint(every[place]):
            checkpoint.remove()
    stage.watch.start(sum(steps_of(job, stage) for job in todo.values()))
    try:
        if hands is None:
            for place, job in todo.items():
                keep = partial(books.record, place)
                carry_out(job, stage, books.checkpoint(job), resume=books.resume, keep=keep)
        else:
            _have_carried_out(todo, stage, books, hands)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. {_how_to_go_on(books)}") from None
    except FileError as error:  # of our own files: what a job does wrong is in its record
        if isinstance(error, NotOwnedError):
            raise
        raise UnwrittenError(f"{error} {_how_to_go_on(books)}") from error
    except StateError as error:  # of workers, for the same reason
        raise WorkersLostError(f"{error} {_how_to_go_on(books)}") from error
    finally:
        stage.watch.stop()


def _have_carried_out(todo: dict[int, Job], stage: Stage, books: _Books, hands: Crew) -> None:
    """Hand the jobs to workers, who look after the checkpoints; the records stay with us."""
    folder, owner = books.folder, ""
    if folder is not None:
        owner = (folder / LOCK).read_text(encoding="utf-8")
        if not books.resume:  # of a run whose results were removed
            for job in todo.values():
                Checkpoint(folder, job).remove()
    tasks = [task.name for task in stage.sequence.tasks]
    hearing = Hearing(todo, tasks, stage.watch, books.record)
    assignments = [
        Assignment(stage.config, place, job, folder, owner) for place, job in todo.items()
    ]
    try:
        hands.carry_out(assignments, hearing.hear)
    finally:
        if folder is not None:
            remove_half_written(folder)  # what workers that were killed were just writing


def _bytes_needed(network: TaskNetwork, tasks: int) -> int:
    """At most so many bytes are written at a time: the checkpoint of one job, twice."""
    # Per task two copies (IMM, EWC), beside the network, Ω, θ* and SI's path.
    copies = 4 + 2 * tasks
    return 2 * copies * allocated(network.state_dict().values())


def _refuse_too_large_model(config: Config, sequence: TaskSequence) -> None:
    """The small networks grow with the images: one that cannot fit is not begun."""
    if config.model not in SMALL:
        return
    with torch.device("meta"):
        weights = allocated(SMALL[config.model](sequence.input_shape).parameters())
    room, shape = memory_bytes(), "×".join(map(str, sequence.input_shape))
    if room is not None and weights > room:
        raise ConfigError(
            f"{config.model} on inputs of {shape} has {weights / 1e9:,.0f} GB of weights, and this "
            f"machine has {room / 1e9:,.0f} GB. Give a smaller image size or another model."
        )


def _refuse_other_runs(results: Results, stage: Stage, path: Path) -> None:
    """The records on file must be those of the config's jobs, in their order."""
    tasks = [task.name for task in stage.sequence.tasks]
    expected = jobs(stage.config)
    for place, run in enumerate(results.runs):
        if place >= len(expected) or not expected[place].is_of(run) or run.tasks != tasks:
            raise FileError(
                f"{path} does not hold the runs of its own config: runs[{place}] is of "
                f"{run.method}, seed {run.seed}, on {len(run.tasks)} tasks. {REMEDY}"
            )


def _how_to_go_on(books: _Books) -> str:
    if books.folder is None:
        return "Nothing was kept: the run had no out folder."
    return how_to_go_on("compare" if books.results.config.comparison else "run", books.folder)


def refuse_what_does_not_fit(config: Config, sequence: TaskSequence) -> None:
    """Raise for everything in `config` that cannot be done with these tasks.

    Raises:
        ConfigError: a task has fewer samples than a batch, or no task has a class of that name.
    """
    if config.chooses_strength:
        for task in sequence.tasks[1:]:
            task.with_validation(VALIDATION)  # a task that is too small for one says so
    problems = [*_small_tasks(config, sequence), *_unknown_classes(config, sequence)]
    if problems:
        raise ConfigError(" ".join(problems))


def _small_tasks(config: Config, sequence: TaskSequence) -> Iterator[str]:
    size = config.batch_size
    small = [f"{t.name!r} has {len(t.train)}" for t in sequence.tasks if len(t.train) < size]
    if small:
        yield (
            f"Fewer training samples than a batch of {size}: {', '.join(small)}. "
            "Give a smaller batch size or more samples."
        )


def _unknown_classes(config: Config, sequence: TaskSequence) -> Iterator[str]:
    known = sorted({name for task in sequence.tasks for name in task.classes})
    for name in config.importance_classes:
        if name not in known:
            listed = ", ".join(known[:LISTED]) + (", …" if len(known) > LISTED else "")
            yield (
                f"importance_classes has {name!r}, which is not a class of these "
                f"tasks.{did_you_mean(name, known)} Their classes: {listed}."
            )
