"""The nouns: a split of examples, a task, and a sequence of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from retain.errors import ConfigError
from retain.tasks.splits import held_out

Scenario = Literal["task-incremental", "domain-incremental"]
Device = torch.device | str | None


class Minibatch(NamedTuple):
    """Some examples of a split: inputs [n, …], labels [n] and their indices [n] in the split."""

    inputs: Tensor
    labels: Tensor
    indices: Tensor


class Examples(Protocol):
    """One split of one task."""

    @property
    def labels(self) -> Tensor:
        """The labels, [n] int64 on the CPU, counted from 0 in the order of the task's classes."""

    @property
    def deterministic(self) -> bool:
        """Whether `train=True` gives the same inputs in every epoch (no random augmentation)."""

    def __len__(self) -> int: ...

    def batches(
        self,
        size: int,
        *,
        shuffle: torch.Generator | None = None,
        train: bool = False,
        device: Device = None,
    ) -> Iterator[Minibatch]:
        """One epoch in batches of `size`; the last one holds what remains.

        Args:
            size: examples in a batch.
            shuffle: the generator (on the CPU) that the order, and the randomness of the training
                transform, are drawn from; None keeps the order of the split.
            train: apply the training transform in place of the one for evaluation.
            device: where the tensors of a batch are put; None leaves them where the data is.
        """

    def select(self, indices: Tensor) -> Examples:
        """The examples at `indices`, in that order, sharing memory where that is possible."""


@dataclass(frozen=True)
class Task:
    """One thing to learn: its classes, what to learn it from and what to measure it on."""

    name: str
    classes: tuple[str, ...]
    train: Examples
    test: Examples
    val: Examples | None = None

    def with_validation(self, fraction: float, *, seed: int = 0) -> Task:
        """The task with a validation split: its own, or `fraction` of each class cut from train.

        A fraction of 0 leaves the task as it is.

        Raises:
            ConfigError: the training split is too small to give and keep examples of each class.
        """
        if self.val is not None or fraction == 0:
            return self
        kept, out = held_out(self.train.labels, fraction, seed=seed)
        for what, part in (("leaves", kept), ("takes", out)):
            found = len(self.train.labels[part].unique())
            if found < len(self.classes):
                raise ConfigError(
                    f"A validation split of {fraction:g} of task {self.name!r} {what} no training "
                    f"examples of {len(self.classes) - found} of its {len(self.classes)} classes "
                    f"({len(self.train)} examples in all). Give more data or another fraction."
                )
        return replace(self, train=self.train.select(kept), val=self.train.select(out))


@dataclass(frozen=True)
class TaskSequence:
    """Tasks in the order in which they are learned.

    Attributes:
        name: the specification that the sequence was made from.
        tasks: the tasks, in order.
        input_shape: the shape of one input, without the batch dimension.
        scenario: a head per task ("task-incremental"), or one for all ("domain-incremental").
        notes: what was noticed while the data was read, one sentence each.
        splits: a sentence on how the splits were made.
        input_dtype: the type of inputs; of whole numbers where they are tokens.
    """

    name: str
    tasks: tuple[Task, ...]
    input_shape: tuple[int, ...]
    scenario: Scenario = "task-incremental"
    notes: tuple[str, ...] = ()
    splits: str = ""
    input_dtype: torch.dtype = torch.float32
