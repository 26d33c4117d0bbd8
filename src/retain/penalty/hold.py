"""What holds a weight, and the numbers that come with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retain.sharding import local

TINY = 1e-36  # far below the square of any optimizer's ε
LEAST = 1e-30  # of what is added to Ω before dividing by it: beyond, only θ* is left anyway

Number = float | Tensor  # a tensor without dimensions, for what only an accelerator knows


class Hold(NamedTuple):
    """One quadratic Σ Ω (θ − θ*)² on one parameter, with Ω = unit · importance.

    The unit is other than 1 where Ω is kept in 8 bits, whose range is short.
    """

    importance: Tensor
    anchor: Tensor
    unit: float = 1.0

    def omega(self, part: Tensor, other: Tensor) -> Tensor:
        """Ω of a part of `importance`, where `other` is and in its type."""
        here = like(part, other)
        return here if self.unit == 1 else here * self.unit

    @property
    def whole(self) -> Tensor:
        """Ω as it is kept, in single precision where that is in 8 bits."""
        return in_full(self.importance, self.unit)


class Metric(NamedTuple):
    """H = factor · √square + offset, per element: by what an optimizer divides its steps."""

    square: Tensor
    factor: Number
    offset: float

    def here(self) -> Metric:
        """The same for this rank's shard."""
        return self._replace(square=local(self.square))


def in_full(importance: Tensor, unit: float) -> Tensor:
    """Ω = unit · importance, in single precision where that is in 8 bits."""
    return importance if unit == 1 else importance.float() * unit


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """`tensor` where `other` is, in its type; an accelerator is not waited for."""
    return tensor.to(other.device, other.dtype, non_blocking=is_accelerated(other))


def on_host(number: Number) -> Number:
    """`number` as a float, unless that would mean to wait for an accelerator."""
    if isinstance(number, Tensor) and is_accelerated(number):
        return number
    return float(number)


def is_accelerated(tensor: Tensor) -> bool:
    """Whether `tensor` is computed on while the host goes on."""
    return tensor.device.type != "cpu"


def is_nothing(number: Number) -> bool:
    """Whether it is known, without waiting, to be 0."""
    return not isinstance(number, Tensor) and number == 0


def floor(scale: Number) -> Number:
    """1/(2·scale), what stands beside Ω in a proximal step.

    Of a tensor that is 0 it is infinite, and then nothing moves.
    """
    return at_least(0.5 / scale)


def at_least(number: Number) -> Number:
    """`number`, but never so little that Ω/(Ω + number) could be 0/0."""
    return number.clamp(min=LEAST) if isinstance(number, Tensor) else max(number, LEAST)


def working_dtype(theta: Tensor) -> torch.dtype:
    """No less than single precision."""
    return theta.dtype if theta.dtype == torch.float64 else torch.float32
