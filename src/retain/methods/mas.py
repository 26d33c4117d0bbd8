"""MAS and l-MAS (Aljundi et al. 2018): what the network is sensitive to resists change."""

from __future__ import annotations

from dataclasses import dataclass

import retain
from retain.memory.body import Memory
from retain.methods.quadratic import Quadratic, QuadraticOptions


@dataclass(frozen=True)
class MASOptions(QuadraticOptions):
    """Defaults of MAS: λ = 1, as in the paper."""


@dataclass(frozen=True)
class LocalMASOptions(QuadraticOptions):
    """Defaults of l-MAS."""


class MASMethod(Quadratic[MASOptions]):
    """Ω = 1/N Σₖ |∂‖F(xₖ)‖²/∂θ| without labels, summed over tasks; θ* the latest weights."""

    name = "mas"
    title = "MAS"
    Options = MASOptions
    stores = "One importance Ω and one anchor θ* per shared weight, however many tasks there were."
    needs = "unlabelled old data, once"
    knob = "strength"
    chooses_data = True

    def make_memory(self) -> Memory:
        """`retain.MAS`."""
        return retain.MAS(self.network, include=self.setting.shared)


class LocalMASMethod(Quadratic[LocalMASOptions]):
    """MAS with each layer's own output in place of the network's: a forward pass only."""

    name = "local-mas"
    title = "l-MAS"
    Options = LocalMASOptions
    stores = (
        "One importance Ω and one anchor θ* per weight of the shared linear and convolutional "
        "layers, however many tasks there were."
    )
    needs = "unlabelled old data, once"
    knob = "strength"
    chooses_data = True

    def make_memory(self) -> Memory:
        """`retain.LocalMAS`."""
        return retain.LocalMAS(self.network, include=self.setting.shared)
