"""One job: a method, λ and a seed; what it draws, how it goes on, where it stands on disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from retain import files
from retain.errors import FileError
from retain.experiment.config import AUTO, Config, Strength, knob_value
from retain.experiment.evaluate import Score, by_layer
from retain.experiment.folder import CHECKPOINTS
from retain.experiment.results import Run, Tried
from retain.experiment.stage import Stage
from retain.experiment.train import learn
from retain.methods import METHODS, Form, ImportanceData, Method, options_of
from retain.methods.finetune import FineTune, FineTuneOptions
from retain.strength import choose_strength
from retain.tasks import TaskSequence


@dataclass(frozen=True)
class Job:
    """One line of the results. What does not apply to the method is None."""

    method: str
    strength: Strength | None
    form: Form | None
    importance_on: ImportanceData | None
    seed: int
    knob: float | None = None  # the value of a sweep over something other than λ

    @property
    def label(self) -> str:
        """What the job is called on the screen and in the names of its files."""
        parts = [self.method, self.form, self.importance_on, f"seed{self.seed}"]
        parts[1:1] = [str(value) for value in (self.strength, self.knob) if value is not None]
        return "-".join(part for part in parts if part)

    def is_of(self, run: Run) -> bool:
        """Whether a record may be of this job."""
        mine = (self.method, self.seed, self.form, self.importance_on, self.knob)
        strength = self.strength if isinstance(self.strength, float) else run.strength
        same = (run.method, run.seed, run.form, run.importance_on, run.knob) == mine
        return same and run.strength == strength

    def begun(self, tasks: Sequence[str]) -> Run:
        """The record of the job when it begins."""
        return Run(
            method=self.method,
            seed=self.seed,
            strength=self.strength if isinstance(self.strength, float) else None,
            form=self.form,
            importance_on=self.importance_on,
            knob=self.knob,
            tasks=list(tasks),
        )


def jobs(config: Config) -> list[Job]:
    """Every job of a config: seed after seed, and within a seed method after method."""
    return [
        job
        for seed in config.seeds
        for method in config.methods
        for job in _of_method(method, seed, config)
    ]


def _of_method(method: str, seed: int, config: Config) -> Iterator[Job]:
    kind = METHODS[method]
    defaults = options_of(method, config.options.get(method, {}))
    strengths: tuple[Strength | None, ...] = (None,)
    if kind.has_strength():
        strengths = config.strengths_of(method) or (float(defaults.strength),)
    forms = (config.forms or (defaults.form,)) if kind.has_form() else (None,)
    data = config.importance_on if kind.chooses_data else (None,)
    knobs = config.sweeps.get(method, (None,))
    for strength, form, on, knob in product(strengths, forms, data, knobs):
        yield Job(method, strength, form, on, seed, knob)


def seed_for(*parts: object) -> int:
    """A seed of 63 bits that depends on all of `parts` and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def start_drawing(*parts: object) -> torch.Generator:
    """Seed the global random state from `parts`; give a generator for the order of the data."""
    seed = seed_for(*parts)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed_for(seed, "order"))


KIND = "checkpoint"
SUFFIX = ".safetensors"
DAMAGED = ".damaged"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


class Standing(NamedTuple):
    """A job after some of its tasks."""

    run: Run
    network: dict[str, Tensor]
    method: dict[str, Tensor]


class Checkpoint:
    """The file of one job. It is gone once the job is done."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.job = job
        self.path = folder / CHECKPOINTS / f"{job.label}{SUFFIX}"

    def save(self, standing: Standing) -> None:
        """Write where the job stands, atomically.

        Raises:
            FileError: it cannot be written; the last one is still there.
        """
        tensors = {f"network.{name}": tensor for name, tensor in standing.network.items()}
        tensors |= {f"method.{name}": tensor for name, tensor in standing.method.items()}
        files.write(self.path, KIND, tensors, {"run": json.dumps(standing.run.to_json())})

    def load(self) -> Standing | None:
        """Where the job stands, or None if no task of it was finished.

        Raises:
            FileError: the file cannot be read, is not as it was written, or is of another job.
        """
        if not self.path.exists():
            return None
        tensors, header = files.read(self.path, KIND)
        record: Any = header.get("run")
        try:
            run = Run.from_json(json.loads(record))
        except (TypeError, ValueError, RecursionError) as error:
            raise FileError(f"{self.path} holds no record of a run: {error}.") from None
        if not self.job.is_of(run) or not 0 < len(run.accuracy) <= len(run.tasks):
            raise FileError(f"{self.path} is of another job: {run.method}, seed {run.seed}.")
        wrong = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
        if wrong:
            raise FileError(f"{self.path} holds NaN or infinity in {', '.join(sorted(wrong))}.")
        return Standing(run, _under(tensors, "network."), _under(tensors, "method."))

    def set_aside(self) -> Path:
        """Where the file, which cannot be used, is now."""
        aside = self.path.with_suffix(DAMAGED)
        self.path.replace(aside)
        return aside

    def remove(self) -> None:
        """Take the file away."""
        self.path.unlink(missing_ok=True)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


LISTED_CLASSES = 200  # of a task with more, the accuracy is not listed class by class
Clock = Literal["train_seconds", "importance_seconds", "evaluation_seconds"]


class Work:
    """A job between two tasks: it can learn the next one, say where it stands, and resume."""

    def __init__(self, job: Job, stage: Stage) -> None:
        self.job, self.stage = job, stage
        self.run = job.begun([task.name for task in stage.sequence.tasks])
        self.network = stage.network(job.seed)
        self._add_head(0)
        self.method = self._method()

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
        return Standing(self.run, self.network.state_dict(), self.method.state_dict())

    def resume(self, standing: Standing) -> None:
        """Go on from where `standing` was taken."""
        status: Literal["done", "running"] = "done" if standing.run.complete else "running"
        self.run = standing.run.model_copy(update={"status": status, "error": None})
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


# Times the method's default: high enough to hold the old tasks (the survey starts MAS at 3, LwF at
# 10). Far beyond it LwF and EBLL take steps so large that they harm what they should keep.
START = 10.0
DECAY = 0.3
VALIDATION = 0.1  # of a task's training data, where it has no validation data of its own
ENOUGH = 500  # validation samples, of which one standard error is about a point or less


def choose(method: Method[Any], index: int, stage: Stage, seed: int) -> list[Tried]:
    """What was tried; leaves `method` trained on task `index` with the strength that was chosen.

    Fine-tuning on the new task is the reference. The first search starts high; later ones start
    one step above the strength that the last one ended with. Where no strength lets the new task
    be learned, nothing is held. No data of an old task is looked at. Where validation data
    is too little to tell a point, accuracy on the task's training data must not be lost either.
    Validation data is the task's own, or cut from its training data: then it is learned once more
    from all of them, with the strength that was chosen.
    """
    network, whole = method.network, stage.sequence
    task = whole.tasks[index].with_validation(VALIDATION)
    assert task.val is not None
    judged = [task.val] if len(task.val) >= ENOUGH else [task.val, task.train]
    first, kept = _copy(network.state_dict()), _copy(method.state_dict())

    part = replace(whole, tasks=(*whole.tasks[:index], task, *whole.tasks[index + 1 :]))

    def trained(learner: Method[Any], on: TaskSequence = part) -> list[float]:
        steps = learner.steps(index, on, stage.config.batch_size)
        stage.watch.more(stage.config.epochs * steps)
        order = start_drawing(seed, index)
        learn(learner, index, on, stage.config, order=order, watch=stage.watch)
        return [stage.score(network, index, examples).accuracy for examples in judged]

    def trained_with(strength: float, on: TaskSequence = part) -> list[float]:
        network.load_state_dict(first)
        method.load_state_dict(_copy(kept))
        method.set_strength(strength)
        return trained(method, on)

    reference = trained(FineTune(network, FineTuneOptions(), method.setting))
    default = METHODS[method.name].Options().strength
    # later on one step above the last one, for it may have been noise that it was not higher
    start = START * default if index == 1 else min(method.options.strength / DECAY, START * default)
    choice = choose_strength(
        trained_with,
        start=start or START * default,
        reference=reference,
        samples=[len(examples) for examples in judged],
        decay=DECAY,
    )
    if not choice.accepted or task is not whole.tasks[index]:
        trained_with(choice.strength, whole)
    found: list[Tried] = [
        {
            "task": task.name,
            "strength": one.strength,
            "accuracy": one.accuracy,
            "accepted": one.accepted,
            "reference": choice.reference,
        }
        for one in choice.tried
    ]
    if not choice.accepted:  # as if nothing was held
        last: Tried = {"strength": 0.0, "accuracy": choice.reference, "accepted": True}
        found.append({"task": task.name, "reference": choice.reference, **last})
    return found


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}
