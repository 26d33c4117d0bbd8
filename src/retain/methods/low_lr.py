"""A lower learning rate: the first thing that people try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from retain.methods.method import Method
from retain.ranges import Positive


@dataclass(frozen=True)
class LowLROptions:
    """Defaults of a lower learning rate.

    Attributes:
        factor: what the run's learning rate is multiplied by, from the second task on.
    """

    factor: Positive = 0.1


class LowLR(Method[LowLROptions]):
    """Fine-tuning with a part of the learning rate, from the second task on."""

    name = "low-lr"
    title = "Low LR"
    Options = LowLROptions
    stores = "Nothing but the network."
    needs = "nothing"
    knob = "factor"
    sweep = (0.01, 0.03, 0.1, 0.3, 0.6)

    def protecting(self, index: int, optimizer: Optimizer) -> AbstractContextManager[Any]:
        """A context in which the optimizer takes smaller steps; a schedule goes on from there."""
        return self._slower(optimizer, self.options.factor if index > 0 else 1.0)

    @contextmanager
    def _slower(self, optimizer: Optimizer, factor: float) -> Iterator[None]:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        yield
