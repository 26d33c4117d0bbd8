"""L2-SP (Li, Grandvalet & Davoine 2018): every weight is held alike, near where it started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.memory.attachment import Attachment, Held
from retain.memory.handle import Handle
from retain.memory.optimizers import optimizers_in
from retain.methods.method import Form
from retain.methods.start import FromStart
from retain.parameters import Selection
from retain.penalty import Hold
from retain.ranges import NotNegative
from retain.tasks import TaskSequence


@dataclass(frozen=True)
class L2SPOptions:
    """Defaults of L2-SP.

    Attributes:
        strength: λ, the same for every weight.
        form: "gradient" adds the penalty's gradient to every step; "proximal" follows every step
            with the penalty's exact minimiser; "adaptive" does so with the optimizer's own step
            sizes.
    """

    strength: NotNegative = 0.01
    form: Form = "adaptive"


def near(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    optimizer: Optimizer,
    *,
    form: Form,
    strength: float,
) -> AbstractContextManager[Any]:
    """A context in which every step of `optimizer` is drawn to `weights`: λ ‖θ − θ*‖²."""
    parameters = dict(network.named_parameters())
    held: Held = {
        name: (parameters[name], [Hold(torch.ones((), device=old.device).expand_as(old), old)])
        for name, old in weights.items()
        if name in parameters
    }
    return Handle(
        Attachment(found, form, held=lambda: held, weight=lambda: strength)
        for found in optimizers_in(optimizer)
    )


def squared_distance(network: nn.Module, weights: Mapping[str, Tensor]) -> float:
    """‖θ − θ*‖² over the parameters of the network that `weights` has."""
    found = dict(network.named_parameters())
    return sum(
        float((found[n].detach() - w).square().sum()) for n, w in weights.items() if n in found
    )


class L2SP(FromStart[L2SPOptions]):
    """λ Σ (θ − θ*)², Ω = 1 for every shared weight; θ* the weights before the task."""

    name = "l2-sp"
    title = "L2-SP"
    Options = L2SPOptions
    stores = "One anchor θ* per shared weight, while a task is learned."
    needs = "nothing"
    knob = "strength"

    def protecting(self, index: int, optimizer: Optimizer) -> AbstractContextManager[Any]:
        """Held near the weights before the task, from the second task on."""
        if index == 0 or not self.options.strength:
            return nullcontext()
        return near(
            self.network,
            self.start,
            optimizer,
            form=self.options.form,
            strength=self.options.strength,
        )

    def resistance(self, start: Mapping[str, Tensor]) -> float:
        """‖θ − θ*‖² over what the tasks share."""
        shared = Selection.of(self.setting.shared, None)
        return squared_distance(
            self.network, {name: w for name, w in start.items() if shared.picks(name)}
        )

    def end(self, index: int, sequence: TaskSequence) -> None:
        """The next task has an anchor of its own."""
        self.start = {}

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """θ*."""
        return {"anchor": self.start.values()}
