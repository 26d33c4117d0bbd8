"""One job carried out: task after task, with a record and a checkpoint after each of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from retain.errors import RetainError
from retain.experiment.checkpoint import Checkpoint, Standing
from retain.experiment.config import AUTO, knob_value
from retain.experiment.evaluate import ClassScores, by_layer
from retain.experiment.foresight import foresight
from retain.experiment.job import Job
from retain.experiment.machine import start_drawing
from retain.experiment.record import Run
from retain.experiment.stage import Stage
from retain.experiment.strength_search import choose, parts_chosen
from retain.experiment.train import learn
from retain.interrupts import uninterrupted
from retain.methods import METHODS, Method, options_of
from retain.methods.method import under

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
            learner = next(steps)
        # A method that fails, or ends the process, shall not take the others with it.
        except (Exception, SystemExit) as error:
            run.status, run.error = "failed", described(error)
            stage.watch.say(f"{job.label}: failed. {run.error}")
        else:
            run = learner.run
            if checkpoint is not None:
                with uninterrupted():
                    checkpoint.save(learner.standing())
            stage.watch.say(_line(job, run))
        keep(run)
    if checkpoint is not None and run.status == "done":
        checkpoint.remove()


def _task_by_task(job: Job, stage: Stage, checkpoint: Checkpoint | None) -> Iterator[Learner]:
    """The learner of a job, once for what is on disk and once after each task that is learned."""
    learner = _resumed(job, stage, checkpoint) if checkpoint is not None else None
    if learner is None:
        learner = Learner(job, stage)
    else:
        stage.watch.more(-steps_of(job, stage, until=len(learner.run.accuracy)))
        yield learner
    while not learner.run.complete:
        learner.learn_next()
        yield learner


def _resumed(job: Job, stage: Stage, checkpoint: Checkpoint) -> Learner | None:
    """The learner where its checkpoint left it; None if there is none, or none that can be used."""
    try:
        standing = checkpoint.load()
        if standing is None:
            return None
        learner = Learner(job, stage)
        learner.resume(standing)
    except Exception as error:  # whatever is wrong with it: begun anew the job ends the same
        aside = checkpoint.set_aside()
        stage.watch.say(
            f"{job.label}: started again, because its checkpoint cannot be used. "
            f"{described(error)} It is now {aside}."
        )
        return None
    return learner


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


# ---- between two tasks ----

FORESIGHT = "foresight."  # before the names of what it keeps
LISTED_CLASSES = 200  # of a task with more, the accuracy is not listed class by class
Clock = Literal["train_seconds", "importance_seconds", "evaluation_seconds"]


class Learner:
    """A job between two tasks: it can learn the next one, say where it stands, and resume."""

    def __init__(self, job: Job, stage: Stage) -> None:
        self.job, self.stage = job, stage
        self.run = job.begun([task.name for task in stage.sequence.tasks])
        self.network = stage.network(job.seed)
        self._add_head(0)
        self.method = self._method()
        self.foresight = foresight(stage) if job.strength == AUTO else None

    def _method(self) -> Method[Any]:
        asked: dict[str, Any] = dict(self.stage.config.options.get(self.job.method, {}))
        if self.job.form is not None:
            asked["form"] = self.job.form
        if isinstance(self.job.strength, float):
            asked["strength"] = self.job.strength
        knob = METHODS[self.job.method].knob
        if self.job.knob is not None and knob is not None:
            asked[knob] = knob_value(self.job.method, self.job.knob)
        options = options_of(self.job.method, asked)
        return METHODS[self.job.method](
            self.network, options, self.stage.setting(self.job.seed, self.job.importance_on)
        )

    def _add_head(self, index: int) -> None:
        self.network.add_head(len(self.stage.sequence.tasks[index].classes))

    def standing(self) -> Standing:
        """Where the job stands; shares its tensors."""
        seen = self.foresight.state_dict() if self.foresight else {}
        method = {**self.method.state_dict(), **{FORESIGHT + name: t for name, t in seen.items()}}
        return Standing(self.run, self.network.state_dict(), method)

    def resume(self, standing: Standing) -> None:
        """Go on from where `standing` was taken."""
        status: Literal["done", "running"] = "done" if standing.run.complete else "running"
        self.run = standing.run.model_copy(update={"status": status, "error": None})
        for index in range(1, len(self.run.accuracy)):
            self._add_head(index)
        self.network.load_state_dict(standing.network)
        mine = {n: t for n, t in standing.method.items() if not n.startswith(FORESIGHT)}
        self.method.load_state_dict(mine)
        if self.foresight:
            self.foresight.load_state_dict(under(standing.method, FORESIGHT))
        if self.job.strength == AUTO and self.run.strength is not None:
            self.method.set_strength(self.run.strength)

    def learn_next(self) -> None:
        """Learn the next task and measure; the record is one row longer after it."""
        index, tasks = len(self.run.accuracy), self.stage.sequence.tasks
        watch = self.stage.watch
        watch.at(self.job.label, f"task {index + 1}/{len(tasks)} {tasks[index].name}")
        if index > 0:
            self._add_head(index)
        with self._timed("evaluation_seconds"):
            before = self.stage.score(self.network, index).accuracy
            at_random = self.stage.at_random(self.job.seed)[index]
        with self._timed("train_seconds"):
            self._learn(index)
        learning = self.method.memory_bytes()
        with self._timed("importance_seconds"):
            watch.phase("importance")
            start_drawing(self.job.seed, index, "end")
            self.method.end(index, self.stage.sequence)
            if self.foresight:
                self.foresight.end(self.method, index, self.stage)
        with self._timed("evaluation_seconds"):
            watch.phase("evaluation")
            scores = [self.stage.score(self.network, task) for task in range(index + 1)]
        self.run.before.append(before)
        self.run.at_random.append(at_random)
        kept = _larger(learning, self.method.memory_bytes())
        if self.foresight and (more := self.foresight.kept()):
            kept["foresight"] = more
        self.run.memory_bytes_by_task.append(kept)
        row = [score.accuracy for score in scores]
        self.run.accuracy.append([*row, *[None] * (len(tasks) - len(row))])
        by_class = self._by_class(scores)
        name = tasks[index].name
        if name in by_class:
            self.run.accuracy_by_class_learned[name] = by_class[name]
        if self.run.complete:
            self.run.accuracy_by_class = by_class
            self.run.importance_by_layer = by_layer(self.method.importance())
            self.run.status = "done"

    def _by_class(self, scores: list[ClassScores]) -> dict[str, dict[str, float | None]]:
        """Of each task with few enough classes to be listed, the accuracy on each of them."""
        return {
            task.name: score.by_class(task.classes)
            for task, score in zip(self.stage.sequence.tasks, scores)
            if len(task.classes) <= LISTED_CLASSES
        }

    def _learn(self, index: int) -> None:
        if self.foresight and index > 0:
            self.run.strength, tried = choose(
                self.method,
                index,
                self.stage,
                seed=self.job.seed,
                foresight=self.foresight,
                earlier=parts_chosen(self.run.strength_search or []),
            )
            self.run.strength_search = [*(self.run.strength_search or []), *tried]
            return
        seed, method, stage = self.job.seed, self.method, self.stage
        order, shared = start_drawing(seed, index), stage.first_tasks
        common = index == 0 and method.first_as_finetune
        if common and shared.weights and shared.seed == seed:
            shared.put_into(method, stage.sequence)
            self.run.train_seconds += shared.seconds
            steps = method.steps(0, stage.sequence, stage.config.batch_size)
            stage.watch.more(-stage.config.epochs * steps)
            return
        begun = time.perf_counter()
        learn(method, index, stage.sequence, stage.config, order=order, watch=stage.watch)
        if common:
            shared.keep(seed, method.network, time.perf_counter() - begun)

    @contextmanager
    def _timed(self, clock: Clock) -> Iterator[None]:
        start = time.perf_counter()
        yield
        setattr(self.run, clock, getattr(self.run, clock) + time.perf_counter() - start)


def _larger(learning: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Bytes by kind that a task takes: while it is learned or after it, whichever is more."""
    return {kind: max(learning.get(kind, 0), after.get(kind, 0)) for kind in {**learning, **after}}
