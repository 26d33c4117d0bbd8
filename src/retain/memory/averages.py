"""Running statistics and other buffers that follow the new data, beside weights that are held."""

from __future__ import annotations

import weakref

from torch import nn
from torch.optim import Optimizer

from retain.memory import alarms
from retain.memory.buffers import MovingBuffers
from retain.memory.watched import Said
from retain.statistics import layers_with_statistics, moves_statistics


class Averages:
    """Says so, once, if what the network computes with beside its weights is moving."""

    def __init__(self, say: Said) -> None:
        self._say = say
        self._statistics: dict[str, nn.Module] | None = None
        self._buffers: MovingBuffers | None = None
        self._clock: weakref.ref[Optimizer] | None = None  # at whose steps they are looked at

    def start(self, model: nn.Module | None) -> None:
        """The buffers are what they should be now."""
        self._buffers = None if model is None else MovingBuffers(model)

    def look_again(self) -> None:
        """There may be other layers by now."""
        self._statistics = None

    def see_statistics(self, model: nn.Module) -> None:
        """Warn of running statistics that follow the new data, and name the way to keep them."""
        if "statistics" in self._say:
            return
        if self._statistics is None:
            self._statistics = layers_with_statistics(model)
        moving = [name for name, layer in self._statistics.items() if moves_statistics(layer)]
        if moving:
            self._say("statistics", alarms.statistics(moving))

    def see_buffers(self, optimizer: Optimizer) -> None:
        """Warn of other buffers that follow the new data; at the steps of one optimizer only."""
        clock = None if self._clock is None else self._clock()
        if clock is None:
            clock, self._clock = optimizer, weakref.ref(optimizer)
        if clock is optimizer and self._buffers is not None and "buffers" not in self._say:
            moving = self._buffers.look()
            if moving:
                self._say("buffers", alarms.buffers(moving))
