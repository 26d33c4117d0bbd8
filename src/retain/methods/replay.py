"""Replay: a little of the old data is kept, and mixed into the new (Chaudhry et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.methods.method import Method, Setting, drawn_generator, numbered
from retain.models import TaskNetwork
from retain.ranges import Positive, UpToOne
from retain.tasks import Minibatch, TaskSequence


@dataclass(frozen=True)
class ReplayOptions:
    """Defaults of replay.

    Attributes:
        share: the part of every task's training data that is kept, drawn at random class by class
            in equal parts; at least one example of each class.
        ratio: old examples in a step for each new one.
    """

    share: UpToOne = 0.01
    ratio: Positive = 1.0


class Replay(Method[ReplayOptions]):
    """Every step sees old examples beside the new ones, each with the head of its own task.

    The old ones are drawn anew in every step from what was kept, and the loss is the mean
    cross-entropy over all examples of the step. Kept are the inputs as they look at test time.
    """

    name = "replay"
    title = "Replay"
    Options = ReplayOptions
    stores = "A part of every task's training data, with labels."
    needs = "old data with labels"
    knob = "share"
    sweep = (0.002, 0.005, 0.01, 0.03, 0.1)
    protects_from_outside = False

    def __init__(self, network: TaskNetwork, options: ReplayOptions, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self.examples: list[dict[str, Tensor]] = []  # a task each: its inputs and its labels
        self._order = torch.Generator()

    def begin(self, index: int, sequence: TaskSequence) -> None:
        """Let every head learn again: there is something to learn it from."""
        if index == 0:
            return  # nothing is drawn either: the first task is that of fine-tuning
        self._order = drawn_generator()
        if self.options.share:
            for head in self.network.heads:
                head.requires_grad_(True)

    def loss(self, batch: Minibatch) -> Tensor:
        """Mean cross-entropy over the new examples and those drawn from the old ones."""
        old = self._drawn(round(self.options.ratio * len(batch.labels)))
        if not old:
            return super().loss(batch)
        inputs = torch.cat([batch.inputs, *(x.to(batch.inputs) for _, x, _ in old)])
        sizes = [len(batch.labels), *(len(y) for _, _, y in old)]
        new, *others = self.network.features(inputs).split(sizes)
        total = F.cross_entropy(self.network.head(new), batch.labels, reduction="sum")
        heads = self.network.heads
        for (task, _, labels), features in zip(old, others):
            logits = heads[min(task, len(heads) - 1)](features)
            total = total + F.cross_entropy(logits, labels.to(logits.device), reduction="sum")
        return total / sum(sizes)

    def _drawn(self, number: int) -> list[tuple[int, Tensor, Tensor]]:
        """(task, inputs, labels) of `number` kept examples, drawn evenly over all of them."""
        sizes = [len(kept["labels"]) for kept in self.examples]
        if not sum(sizes):
            return []
        places = torch.randint(sum(sizes), (number,), generator=self._order)
        drawn, start = [], 0
        for task, (kept, size) in enumerate(zip(self.examples, sizes)):
            own = places[(places >= start) & (places < start + size)] - start
            if len(own):
                drawn.append((task, kept["inputs"][own], kept["labels"][own]))
            start += size
        return drawn

    def end(self, index: int, sequence: TaskSequence) -> None:
        """Keep a part of the task's training data."""
        train, generator = sequence.tasks[index].train, drawn_generator()
        chosen = _in_equal_parts(train.labels, self.options.share, generator)
        inputs: list[Tensor] = []
        if len(chosen):
            size = self.setting.pass_size
            inputs = [batch.inputs.cpu() for batch in train.select(chosen).batches(size)]
        kept = torch.cat(inputs) if inputs else torch.empty(0)
        self.examples.append({"inputs": kept, "labels": train.labels[chosen].clone()})

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """The examples."""
        return {"examples": [tensor for kept in self.examples for tensor in kept.values()]}

    def state_dict(self) -> dict[str, Tensor]:
        """The examples of every task under its number."""
        return {f"task.{t}.{n}": x for t, kept in enumerate(self.examples) for n, x in kept.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the examples back."""
        self.examples = [dict(kept) for kept in numbered(state, "task")]


def _in_equal_parts(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Indices of that share of every class, at least one of each unless the share is 0."""
    if not share:
        return torch.empty(0, dtype=torch.long)
    parts = []
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        count = min(len(own), max(1, round(share * len(own))))
        parts.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return torch.cat(parts).sort().values
