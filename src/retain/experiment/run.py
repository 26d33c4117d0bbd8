"""All jobs of a config, one after another: written after every task, resumable, interruptible."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from retain.closest import did_you_mean
from retain.errors import ConfigError, FileError, RetainError
from retain.experiment.config import Config
from retain.experiment.disk import uninterrupted
from retain.experiment.folder import how_to_go_on, opened
from retain.experiment.job import Checkpoint, Job, Work, jobs
from retain.experiment.machine import (
    chosen_device,
    memory_bytes,
    refuse_too_large,
    reproducible,
    worthwhile_threads,
)
from retain.experiment.progress import Watcher, watcher
from retain.experiment.results import FILE, REMEDY, Results, Run
from retain.experiment.stage import Stage
from retain.methods import METHODS
from retain.methods.method import allocated
from retain.models import TaskNetwork
from retain.models.build import SMALL
from retain.tasks import TaskOptions, TaskSequence, load_tasks

LISTED = 20
VALIDATION = 0.1  # of a task's training data, where a strength is chosen and it has no own split


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message that says how to go on."""


class UnwrittenError(FileError):
    """The run's own files cannot be written; `__cause__` says why, without how to go on."""


def run(
    config: Config,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    progress: bool | Watcher = True,
) -> Results:
    """The results of every job of `config`: each method, strength and seed on the tasks.

    Args:
        config: what to run.
        out: a folder for results.json (written after every task) and checkpoints; None keeps
            the results in memory only.
        resume: go on with the run in `out`; it ends with the accuracies of one that was never
            stopped.
        progress: show how far it is: a bar on a terminal, lines elsewhere; or who shall be told.

    Raises:
        ConfigError: something that cannot be carried out, found before anything is trained.
        FileError: data or results that cannot be read or written.
        Interrupted: Ctrl-C; what was finished is written.
        UnwrittenError: the disk is full, or the folder gone; what was finished is as it was.

    A method that fails is a failed run in the results, with its error; the others go on.
    """
    folder = None if out is None else Path(out)
    if resume and folder is None:
        raise ConfigError("resume=True needs out=, the folder of the run to go on with.")
    device = chosen_device(config.device)
    refuse_too_large(config.image_size or 0, config.batch_size)
    with reproducible(device), contextlib.ExitStack() as held:
        watch = progress if isinstance(progress, Watcher) else watcher(progress)
        try:
            sequence = load_tasks(config.tasks, _task_options(config), progress=watch.reading)
        finally:
            watch.stop()
        config = replace(config, scenario=sequence.scenario)
        refuse_what_does_not_fit(config, sequence)
        _refuse_too_large_model(config, sequence)
        stage = Stage(config, sequence, device, watch)
        network = stage.network(config.seeds[0])
        results = Results(config)
        if folder is not None:
            needed = _bytes_needed(network, len(sequence.tasks))
            results = held.enter_context(opened(folder, config, resume, needed))
            _refuse_other_runs(results, stage, folder / FILE)
        with worthwhile_threads(network, sequence.input_shape, config.batch_size):
            _carry_out_all(stage, _Books(results, folder, resume))
    return results


@dataclass(frozen=True)
class _Books:
    """Where the records of a run go."""

    results: Results
    folder: Path | None
    resume: bool

    def checkpoint(self, job: Job) -> Checkpoint | None:
        return None if self.folder is None else Checkpoint(self.folder, job)

    def record(self, place: int, run: Run) -> None:
        self.results.runs[place : place + 1] = [run]
        if self.folder is not None:
            with uninterrupted():
                self.results.write(self.folder)


def _carry_out_all(stage: Stage, books: _Books) -> None:
    finished = {place for place, run in enumerate(books.results.runs) if run.status == "done"}
    todo = [(place, job) for place, job in enumerate(jobs(stage.config)) if place not in finished]
    stage.watch.start(sum(_steps(job, stage) for _, job in todo))
    try:
        for place, job in todo:
            _carry_out(place, job, stage, books)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. {_how_to_go_on(books.folder)}") from None
    except FileError as error:  # of our own files: what a job does wrong is in its record
        raise UnwrittenError(f"{error} {_how_to_go_on(books.folder)}") from error
    finally:
        stage.watch.stop()


def _carry_out(place: int, job: Job, stage: Stage, books: _Books) -> None:
    """Bring one job to its end, with its record in the books after every task."""
    checkpoint = books.checkpoint(job)
    steps = _task_by_task(job, stage, checkpoint if books.resume else None)
    run = job.begun([task.name for task in stage.sequence.tasks])
    books.record(place, run)
    while run.status == "running":
        try:
            work = next(steps)
        # A method that fails, or ends the process, shall not take the others with it.
        except (Exception, SystemExit) as error:
            run.status, run.error = "failed", described(error)
            stage.watch.say(f"{job.label}: failed. {run.error}")
        else:
            run = work.run
            if checkpoint is not None:
                with uninterrupted():
                    checkpoint.save(work.standing())
            stage.watch.say(_line(job, run))
        books.record(place, run)
    if checkpoint is not None and run.status == "done":
        checkpoint.remove()


def _task_by_task(job: Job, stage: Stage, checkpoint: Checkpoint | None) -> Iterator[Work]:
    """The work on a job, once for what is on disk and once after each task that is learned."""
    work = _resumed(job, stage, checkpoint) if checkpoint is not None else None
    if work is None:
        work = Work(job, stage)
    else:
        stage.watch.more(-_steps(job, stage, until=len(work.run.accuracy)))
        yield work
    while not work.run.complete:
        work.learn_next()
        yield work


def _resumed(job: Job, stage: Stage, checkpoint: Checkpoint) -> Work | None:
    """The work where its checkpoint left it; None if there is none, or none that can be used."""
    try:
        standing = checkpoint.load()
        if standing is None:
            return None
        work = Work(job, stage)
        work.resume(standing)
    except Exception as error:  # whatever is wrong with it: begun anew the job ends the same
        aside = checkpoint.set_aside()
        stage.watch.say(
            f"{job.label}: begun anew, since its checkpoint cannot be used. {described(error)} "
            f"It is now {aside}."
        )
        return None
    return work


def _task_options(config: Config) -> TaskOptions:
    return TaskOptions(
        scenario=config.scenario,
        classes_per_task=config.classes_per_task,
        class_order_seed=config.class_order_seed,
        samples_per_class=config.samples_per_class,
        image_size=config.image_size,
        augmentation=config.augmentation,
        workers=config.workers,
        val_fraction=VALIDATION if config.chooses_strength else 0.0,
    )


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


def _steps(job: Job, stage: Stage, until: int | None = None) -> int:
    """Steps of training that the first `until` tasks take, by default all."""
    kind, batch_size = METHODS[job.method], stage.config.batch_size
    tasks = range(len(stage.sequence.tasks) if until is None else until)
    return stage.config.epochs * sum(kind.steps(i, stage.sequence, batch_size) for i in tasks)


def _line(job: Job, run: Run) -> str:
    learned = len(run.accuracy)
    row = ", ".join(f"{value:.3f}" for value in run.accuracy[-1] if value is not None)
    name = run.tasks[learned - 1]
    return f"{job.label}: task {learned}/{len(run.tasks)} {name} learned. Accuracy: {row}"


def _how_to_go_on(folder: Path | None) -> str:
    if folder is None:
        return "Nothing was kept: the run had no out folder."
    return how_to_go_on("run", folder)


def refuse_what_does_not_fit(config: Config, sequence: TaskSequence) -> None:
    """Raise for everything in `config` that cannot be done with these tasks.

    Raises:
        ConfigError: a task has fewer samples than a batch, or no task has a class of that name.
    """
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
                f"importance_classes has {name!r}, which is no class of these tasks."
                f"{did_you_mean(name, known)} Their classes: {listed}."
            )


def described(error: BaseException) -> str:
    """The message of an error of ours; also the type and the place of one that is not."""
    if isinstance(error, RetainError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
