"""Joint: all data seen so far, at once, from the start; the upper bound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.methods.method import Method, Setting
from retain.models import TaskNetwork
from retain.statistics import running_statistics
from retain.tasks import Minibatch, TaskSequence


@dataclass(frozen=True)
class JointOptions:
    """Joint training has nothing to set."""


class Joint(Method[JointOptions]):
    """After task t the network is one trained, from its first weights, on tasks 0 … t together.

    A step's batch holds samples of every task in proportion to the task's size, each with the
    head of its own task, and the loss is the mean cross-entropy over all of them.
    """

    name = "joint"
    title = "Joint"
    Options = JointOptions
    stores = (
        "All training data of all tasks (not counted as memory of the network), and a copy of the "
        "first weights to start again from."
    )
    needs = "all old data with labels"
    protects_from_outside = False
    first_as_finetune = False  # its batches are all of one size, and so others

    def __init__(self, network: TaskNetwork, options: JointOptions, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self.first: dict[str, Tensor] = {}
        self._remember_new()
        self._sizes: list[int] = []

    def begin(self, index: int, sequence: TaskSequence) -> None:
        """Go back to the first weights, with every head free to learn.

        Where running statistics are frozen, those that the first task left stay: the first ones
        are of no data at all.
        """
        self._remember_new()
        frozen = running_statistics(self.network) if self.network.freeze_statistics else {}
        self.network.load_state_dict({**self.first, **frozen})
        for head in self.network.heads:
            head.requires_grad_(True)

    def _remember_new(self) -> None:
        for name, tensor in self.network.state_dict().items():
            self.first.setdefault(name, tensor.clone())

    @classmethod
    def steps(cls, index: int, sequence: TaskSequence, batch_size: int) -> int:
        """Batches of `batch_size` over all the tasks so far together."""
        shares = _shares(index, sequence, batch_size)
        return max(-(-len(task.train) // n) for task, n in zip(sequence.tasks, shares))

    def batches(
        self, index: int, sequence: TaskSequence, order: torch.Generator
    ) -> Iterator[Minibatch]:
        """Mixed batches, each ordered by task; `loss` finds the tasks by `_sizes`."""
        shares = _shares(index, sequence, self.setting.batch_size)
        streams = [
            task.train.batches(share, shuffle=order, train=True, device=self.setting.device)
            for task, share in zip(sequence.tasks, shares)
        ]
        for parts in zip_longest(*streams):
            present = [part for part in parts if part is not None]
            self._sizes = [0 if part is None else len(part.labels) for part in parts]
            yield Minibatch(*(torch.cat(fields) for fields in zip(*present)))

    def loss(self, batch: Minibatch) -> Tensor:
        """Mean cross-entropy over the batch, every sample with the head of its own task."""
        features = self.network.features(batch.inputs).split(self._sizes)
        labels = batch.labels.split(self._sizes)
        heads = self.network.heads
        total = sum(
            F.cross_entropy(heads[min(t, len(heads) - 1)](f), y, reduction="sum")
            for t, (f, y) in enumerate(zip(features, labels))
            if len(y)
        )
        return torch.as_tensor(total) / len(batch.labels)

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """A copy of the first weights."""
        return {"anchor": self.first.values()}

    def state_dict(self) -> dict[str, Tensor]:
        """The first weights."""
        return self.first

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the first weights back."""
        self.first = dict(state)


def _shares(index: int, sequence: TaskSequence, batch_size: int) -> list[int]:
    """Samples of each task so far in a batch: its part of all their samples, rounded up."""
    sizes = [len(task.train) for task in sequence.tasks[: index + 1]]
    steps = -(-sum(sizes) // batch_size)
    return [-(-size // steps) for size in sizes]
