"""SI, synaptic intelligence (Zenke et al. 2017): what a weight did for the loss on its way."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

import retain
from retain.memory.body import Memory
from retain.methods.quadratic import Quadratic, QuadraticOptions
from retain.ranges import NotNegative, Positive
from retain.tasks import TaskSequence


@dataclass(frozen=True)
class SIOptions(QuadraticOptions):
    """Defaults of SI.

    Attributes:
        damping: ξ, which keeps Ω finite where a weight hardly moved.
    """

    strength: NotNegative = 3.0
    damping: Positive = 1e-3


class SIMethod(Quadratic[SIOptions]):
    """c Σ Ω (θ − θ*)², Ω = Σ_tasks max(ω, 0)/(Δ² + ξ), ω = −Σ_steps g·Δθ, g of the task alone."""

    name = "si"
    title = "SI"
    Options = SIOptions
    stores = (
        "One importance Ω and one anchor θ* per shared weight, and one path integral ω and start "
        "of the path per shared weight while a task is learned."
    )
    needs = "to have watched the old task being learned"
    knob = "strength"
    first_as_finetune = False  # the path of the first task is followed, too

    def make_memory(self) -> Memory:
        """`retain.SI`."""
        return retain.SI(self.network, damping=self.options.damping, include=self.setting.shared)

    def protecting(self, index: int, optimizer: Optimizer) -> AbstractContextManager[Any]:
        """Attached from the first task on: the path is followed even where nothing is held yet."""
        return self.memory.attach(optimizer, form=self.options.form)

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """Ω, θ*, and the path of the task that is being learned (its start is often θ* itself)."""
        kept = super().kept()
        tensors = self.memory.state_dict()["tensors"]
        anchors = {tensor.data_ptr() for tensor in kept["anchor"]}
        starts = (start for start in tensors["start"].values() if start.data_ptr() not in anchors)
        path = [*tensors["observed"].values(), *starts]
        return {**kept, "path": path}

    def end(self, index: int, sequence: TaskSequence) -> None:
        """The path is at its end: no data are looked at."""
        self.memory.consolidate()
