"""One job carried out: a method learns the tasks one after another, and is measured after each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from retain.experiment.checkpoint import Standing
from retain.experiment.config import AUTO
from retain.experiment.evaluation import Score
from retain.experiment.layers import by_layer
from retain.experiment.plan import Job
from retain.experiment.results import Run
from retain.experiment.seeding import start_drawing
from retain.experiment.stage import Stage
from retain.experiment.strength import choose
from retain.experiment.training import learn
from retain.methods import METHODS, Method, options_of

LISTED_CLASSES = 200  # of a task with more, the accuracy is not listed class by class
Clock = Literal["train_seconds", "importance_seconds", "evaluation_seconds"]


class Work:
    """A job between two tasks: it can learn the next one, say where it stands, and resume."""

    def __init__(self, job: Job, stage: Stage) -> None:
        self.job, self.stage = job, stage
        self.run = Run.of(job, [task.name for task in stage.sequence.tasks])
        self.network = stage.network(job.seed)
        self._add_head(0)
        self.method = self._method()

    def _method(self) -> Method[Any]:
        asked: dict[str, Any] = dict(self.stage.config.options.get(self.job.method, {}))
        if self.job.form is not None:
            asked["form"] = self.job.form
        if isinstance(self.job.strength, float):
            asked["strength"] = self.job.strength
        options = options_of(self.job.method, asked)
        return METHODS[self.job.method](self.network, options, self.stage.setting(self.job))

    def _add_head(self, index: int) -> None:
        self.network.add_head(len(self.stage.sequence.tasks[index].classes))

    def standing(self) -> Standing:
        """Where the job stands; shares its tensors."""
        return Standing(self.run, self.network.state_dict(), self.method.state_dict())

    def resume(self, standing: Standing) -> None:
        """Go on from where `standing` was taken."""
        status: Literal["done", "running"] = "done" if standing.run.complete else "running"
        self.run = replace(standing.run, status=status, error=None)
        for index in range(1, len(self.run.accuracy)):
            self._add_head(index)
        self.network.load_state_dict(standing.network)
        self.method.load_state_dict(standing.method)
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
        with self._timed("evaluation_seconds"):
            watch.phase("evaluation")
            scores = [self.stage.score(self.network, task) for task in range(index + 1)]
        self.run.before.append(before)
        self.run.at_random.append(at_random)
        self.run.memory_bytes_by_task.append(_larger(learning, self.method.memory_bytes()))
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

    def _by_class(self, scores: list[Score]) -> dict[str, dict[str, float | None]]:
        """Of each task with few enough classes to be listed, the accuracy on each of them."""
        return {
            task.name: score.by_class(task.classes)
            for task, score in zip(self.stage.sequence.tasks, scores)
            if len(task.classes) <= LISTED_CLASSES
        }

    def _learn(self, index: int) -> None:
        if self.job.strength == AUTO and index > 0:
            tried = choose(self.method, index, self.stage, self.job.seed)
            self.run.strength = tried[-1]["strength"]
            self.run.strength_search = [*(self.run.strength_search or []), *tried]
        else:
            order = start_drawing(self.job.seed, index)
            stage = self.stage
            learn(self.method, index, stage.sequence, stage.config, order=order, watch=stage.watch)

    @contextmanager
    def _timed(self, clock: Clock) -> Iterator[None]:
        start = time.perf_counter()
        yield
        setattr(self.run, clock, getattr(self.run, clock) + time.perf_counter() - start)


def _larger(learning: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Bytes by kind that a task takes: while it is learned or after it, whichever is more."""
    return {kind: max(learning.get(kind, 0), after.get(kind, 0)) for kind in {**learning, **after}}
