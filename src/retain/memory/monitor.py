"""A look at the drift every few protected steps: it is told to a log, and may end training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from retain.counterparts import few
from retain.drift import Drift
from retain.errors import DriftError

if TYPE_CHECKING:
    from torch.optim import Optimizer

Log = Callable[[dict[str, float]], object]
SHOWN = 3  # parameters in a message


class Monitor:
    """Counts the protected steps of one handle, and looks at the drift after every so many.

    Args:
        drift: how far the weights are from θ* now; None before there is a θ*.
        strength: λ now.
        optimizer: whose steps are counted; of several, one, so that a round of all is one step.
        log: is given "step", "drift" (`Drift.relative`), "change", "penalty" (with λ) and
            "distance" as plain numbers, NaN or infinite where weights are.
        limit: of `Drift.relative`; beyond it, a step ends with a DriftError.
        every: how many steps lie between two looks.
    """

    def __init__(
        self,
        drift: Callable[[], Drift | None],
        strength: Callable[[], float],
        optimizer: Optimizer,
        *,
        log: Log | None,
        limit: float | None,
        every: int,
    ) -> None:
        self._drift, self._strength, self._optimizer = drift, strength, optimizer
        self._log, self._limit, self._every = log, limit, every
        self._steps = 0

    def __call__(self, optimizer: Optimizer) -> None:
        """A protected step of `optimizer` is done.

        Raises:
            DriftError: the weights have drifted beyond the limit.
        """
        self._steps += optimizer is self._optimizer
        if optimizer is not self._optimizer or self._steps % self._every:
            return
        drift = self._drift()
        if drift is None:
            return
        if self._log is not None:
            self._log(
                {
                    "step": self._steps,
                    "drift": drift.relative,
                    "change": drift.change,
                    "penalty": self._strength() * drift.penalty,
                    "distance": drift.distance,
                }
            )
        if self._limit is not None and not math.isfinite(drift.relative):
            lost = [n for n, p in drift.parameters.items() if not math.isfinite(p.change)]
            raise DriftError(
                f"After {self._steps} protected steps weights hold NaN or infinity "
                f"({few(lost)}): the training has diverged. Go back to a checkpoint, and lower the "
                'learning rate or use form="adaptive".'
            )
        if self._limit is not None and not drift.relative <= self._limit:
            most = [f"{n} ({100 * p.share:.0f} %)" for n, p in drift.parameters.items()]
            raise DriftError(
                f"After {self._steps} protected steps the drift is {100 * drift.relative:.3g} %, "
                f"beyond the limit of {100 * self._limit:.3g} %; most of it in "
                f"{', '.join(most[:SHOWN])}. The weights are as this step left them. Raise "
                "strength, lower the learning rate, or end the training here."
            )
