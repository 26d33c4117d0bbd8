"""One job carried out: its record after every task, its checkpoint, and what became of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from retain.errors import RetainError
from retain.experiment.disk import uninterrupted
from retain.experiment.job import Checkpoint, Job, Work
from retain.experiment.results import Run
from retain.experiment.stage import Stage
from retain.methods import METHODS

Keep = Callable[[Run], None]


def carry_out(
    job: Job, stage: Stage, checkpoint: Checkpoint | None, *, resume: bool, keep: Keep
) -> None:
    """Bring one job to its end; `keep` gets its record when it begins and after every task.

    Args:
        job: which one.
        stage: what it shares with others.
        checkpoint: where it stands on disk; None keeps nothing there.
        resume: go on from the checkpoint, if there is one.
        keep: whoever writes records.

    Raises:
        FileError: the checkpoint or the record cannot be written.
    """
    steps = _task_by_task(job, stage, checkpoint if resume else None)
    run = job.begun([task.name for task in stage.sequence.tasks])
    keep(run)
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
        keep(run)
    if checkpoint is not None and run.status == "done":
        checkpoint.remove()


def _task_by_task(job: Job, stage: Stage, checkpoint: Checkpoint | None) -> Iterator[Work]:
    """The work on a job, once for what is on disk and once after each task that is learned."""
    work = _resumed(job, stage, checkpoint) if checkpoint is not None else None
    if work is None:
        work = Work(job, stage)
    else:
        stage.watch.more(-steps_of(job, stage, until=len(work.run.accuracy)))
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


def steps_of(job: Job, stage: Stage, until: int | None = None) -> int:
    """Steps of training that the first `until` tasks take, by default all."""
    kind, batch_size = METHODS[job.method], stage.config.batch_size
    tasks = range(len(stage.sequence.tasks) if until is None else until)
    return stage.config.epochs * sum(kind.steps(i, stage.sequence, batch_size) for i in tasks)


def _line(job: Job, run: Run) -> str:
    learned = len(run.accuracy)
    row = ", ".join(f"{value:.3f}" for value in run.accuracy[-1] if value is not None)
    name = run.tasks[learned - 1]
    return f"{job.label}: task {learned}/{len(run.tasks)} {name} learned. Accuracy: {row}"


def described(error: BaseException) -> str:
    """The message of an error of ours; also the type and the place of one that is not."""
    if isinstance(error, RetainError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
