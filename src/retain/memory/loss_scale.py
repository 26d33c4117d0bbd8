"""A GradScaler that divides a penalty which it did not multiply."""

from __future__ import annotations

import sys
from types import FrameType
from weakref import WeakSet

import torch
from torch.optim import Optimizer

from retain.memory import alarms
from retain.memory.watched import Said
from retain.penalty import Number

SCALED = 1024  # a GradScaler that multiplies by more, and a penalty that counts so much less
DEPTH = 16  # callers of a hook among which a GradScaler is looked for
STEPS = ("step", "_maybe_opt_step")  # what those of its methods are called that step an optimizer


class LossScale:
    """Looks at the scale of each optimizer's first step with the penalty in it."""

    def __init__(self, say: Said) -> None:
        self._say = say
        self._seen: WeakSet[Optimizer] = WeakSet()

    def see(self, optimizer: Optimizer, weight: Number | None) -> None:
        """Warn if a GradScaler divides a penalty that it did not multiply; looked at once.

        `weight` is what the penalty was multiplied by in the gradient.
        """
        if weight is None or optimizer in self._seen:
            return
        self._seen.add(optimizer)
        scaler = scaler_around_step()
        scale = scaler.get_scale() if scaler is not None else 1.0
        if scale > SCALED and float(weight) * SCALED < scale:
            self._say("unscaled", alarms.unscaled(scale))


def scaler_around_step() -> torch.amp.GradScaler | None:
    """The GradScaler in whose `step` we are, if we are in one."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(DEPTH):
        if frame is None:
            break
        # To ask for the locals of any other frame would keep them: before Python 3.13 a loss that
        # is deleted there stays in memory, with its graph, until the function returns.
        if frame.f_code.co_name in STEPS:
            owner = frame.f_locals.get("self")
            if isinstance(owner, torch.amp.GradScaler):
                return owner
        frame = frame.f_back
    return None
