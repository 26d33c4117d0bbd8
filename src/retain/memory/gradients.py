"""Whether a parameter moves between two backward passes although no optimizer steps it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from retain.memory.movement import elements, spread, version

DOWNHILL = -0.3  # cosine of a movement and the last gradient: steps go against it, SAM goes along
# Protected steps in the course of which elements are compared, and not only counters; after them
# only where more gradients follow one another without a step than ever did.
CLOSE = 4


class Gradients:
    """A hook on a parameter, called with each of its gradients.

    Args:
        parameter: the one that it is a hook on.
        steps: how many steps were accounted for.
        moved: is called if the parameter went down its last gradient and no step accounts for
            that, or if it moved twice in a row so. (Once, and uphill, is what SAM does before a
            step.)
    """

    __torch_unserializable__ = True  # it stays behind when the parameter goes to another process

    def __init__(
        self, parameter: nn.Parameter, steps: Callable[[], int], moved: Callable[[], None]
    ) -> None:
        self._parameter, self._steps, self._moved = parameter, steps, moved
        self._indices = spread(parameter)
        self._last: tuple[int, int, Tensor, Tensor] | None = None
        self._moved_before = False
        self._since, self._usual = 0, 0  # gradients since a step; the most of them between two

    @torch.no_grad()
    def __call__(self, gradient: Tensor) -> None:
        """A gradient of the parameter has been computed."""
        p, steps = self._parameter, self._steps()
        if gradient.shape != p.shape or gradient.is_sparse:
            return
        now, last = elements(p, self._indices), self._last
        self._last = steps, version(p), now, elements(gradient, self._indices)
        if last is None or last[0] != steps:
            self._moved_before = False
            self._since, self._usual = 1, max(self._usual, self._since)
            return
        self._since += 1
        trusted = steps >= CLOSE and self._since <= self._usual
        if version(p) == last[1] and (trusted or torch.equal(now, last[2])):
            return
        way, slope = (now - last[2]).double(), last[3].double()
        if not way.any():
            return
        lengths = way.norm() * slope.norm()
        downhill = bool(lengths > 0) and float(way @ slope / lengths) < DOWNHILL
        if downhill or self._moved_before:
            self._moved()
        self._moved_before = True
