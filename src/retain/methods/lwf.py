"""LwF, learning without forgetting (Li & Hoiem 2016): the new data as seen by the old heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.methods.method import Method, Setting, drawn_generator
from retain.methods.old_answers import OldAnswers
from retain.models import TaskNetwork
from retain.ranges import Count, NotNegative, Positive
from retain.tasks import Minibatch, TaskSequence


@dataclass(frozen=True)
class LwFOptions:
    """Defaults of LwF.

    Attributes:
        strength: λ, the weight of the old heads' loss.
        temperature: T, by which outputs are softened.
        warmup_epochs: epochs in which the new head learns alone, before everything does.
    """

    strength: NotNegative = 1.0
    temperature: Positive = 2.0
    warmup_epochs: Count = 0


LwFOptionsT = TypeVar("LwFOptionsT", bound=LwFOptions)


def distillation(new: Tensor, old: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy between softened outputs; `new` and `old` are [n, classes]."""
    # −Σ_c softmax(old/T)_c · log softmax(new/T)_c   (LwF, eq. 2–4; no factor T², as in its code)
    return F.cross_entropy(new / temperature, (old / temperature).softmax(1))


class DistillsOldHeads(Method[LwFOptionsT]):
    """What LwF and EBLL share: the old heads shall answer about the new data as they used to."""

    protects_from_outside = False

    def __init__(self, network: TaskNetwork, options: LwFOptionsT, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self.old: OldAnswers | None = None
        self.old_heads: list[int] = []

    def begin(self, index: int, sequence: TaskSequence) -> None:
        """Warm the new head up, then record what the old heads say about the new task's data."""
        self.old = None
        if index == 0:
            return
        heads = len(self.network.heads)
        self.old_heads = (
            [0] if self.setting.scenario == "domain-incremental" else list(range(heads - 1))
        )
        self._warm_up(index, sequence)
        self.old = OldAnswers(self.network, sequence.tasks[index].train, self.answers, self.setting)

    def answers(self, network: TaskNetwork, inputs: Tensor) -> Tensor:
        """[n, outputs of all old heads], side by side."""
        features = network.features(inputs)
        return torch.cat([network.heads[head](features) for head in self.old_heads], 1)

    def _warm_up(self, index: int, sequence: TaskSequence) -> None:
        head = self.network.heads[-1]
        optimizer = self.setting.make_optimizer(head.parameters())
        order = drawn_generator()
        for _ in range(self.options.warmup_epochs):
            for batch in self.batches(index, sequence, order):
                with torch.no_grad():
                    features = self.network.features(batch.inputs)
                loss = F.cross_entropy(head(features), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def distilled(self, new: Iterable[Tensor], old: Tensor) -> Tensor:
        """Σ over old heads of the distillation loss; `old` has their outputs side by side."""
        new = list(new)
        parts = old.split([outputs.shape[1] for outputs in new], 1)
        losses = [distillation(n, o, self.options.temperature) for n, o in zip(new, parts)]
        return torch.stack(losses).sum()


class LwF(DistillsOldHeads[LwFOptions]):
    """Cross-entropy on the new head + λ Σ over old heads of their distillation loss."""

    name = "lwf"
    title = "LwF"
    Options = LwFOptions
    stores = (
        "While a task is learned: the old heads' outputs for its training data, or, when the "
        "training transform is random, a frozen copy of the network."
    )
    needs = "nothing"
    knob = "strength"

    def loss(self, batch: Minibatch) -> Tensor:
        """L = CE(new head) + λ Σ_old CE(softened old, softened new), heads on shared features."""
        features = self.network.features(batch.inputs)
        loss = F.cross_entropy(self.network.heads[-1](features), batch.labels)
        if self.old is None:
            return loss
        new = [self.network.heads[head](features) for head in self.old_heads]
        return loss + self.options.strength * self.distilled(new, self.old(batch))

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """The recorded outputs, or the teacher."""
        return {"teacher": self.old.kept() if self.old else []}
