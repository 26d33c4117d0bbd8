"""λ Σ Ω (θ − θ*)² on one parameter, in parts: no temporary is as large as the parameter.

On a CPU a part and what is made of it fit into the cache. Several (Ω, θ*) pairs may hold the same
weight: their penalties add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from retain.penalty.hold import (
    TINY,
    Hold,
    Metric,
    Number,
    at_least,
    floor,
    is_accelerated,
    is_nothing,
    like,
    working_dtype,
)
from retain.pieces import ACCELERATED, BLOCK, Scratch, pieces

PART, ACCELERATED_PART = BLOCK, ACCELERATED  # elements


def value(theta: Tensor, holds: Sequence[Hold]) -> Tensor:
    """Σ Ω (θ − θ*)² over the elements of one parameter and over `holds`: a scalar, without λ."""
    scratch = _Scratch(theta)
    total = torch.zeros((), dtype=scratch.dtype, device=theta.device)
    for hold in holds:
        for part, omega, star in parts(theta, hold.importance, hold.anchor):
            d = scratch.difference(part, star)
            # Ω (θ − θ*)²   (MAS, eq. 3, without λ)
            total += d.square_().mul_(hold.omega(omega, d)).sum()
    return total


def add_gradient(
    gradient: Tensor | None,
    theta: Tensor,
    holds: Sequence[Hold],
    scale: Number,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """`gradient` + scale · Σ 2Ω (θ − θ*) for one parameter, in `out` or a new tensor; None is 0."""
    total = torch.empty_like(theta if gradient is None else gradient) if out is None else out
    scratch = _Scratch(theta)
    for index, hold in enumerate(holds):
        before = total if index else gradient
        for target, part, omega, star, *given in parts(
            total, theta, hold.importance, hold.anchor, *(() if before is None else (before,))
        ):
            d = scratch.difference(part, star)
            weight = hold.omega(omega, d)
            same = target.dtype == d.dtype
            factor = 2 * scale
            if isinstance(factor, Tensor):
                d.mul_(factor)
                factor = 1.0
            # g + scale · 2Ω (θ − θ*)   (the gradient of MAS, eq. 3)
            if not given:
                torch.mul(d.mul_(factor), weight, out=target if same else d)
            elif same and given[0].dtype == d.dtype:
                torch.addcmul(given[0], d, weight, value=factor, out=target)
            else:
                torch.addcmul(given[0].to(d.dtype), d, weight, value=factor, out=d)
            if not same:
                target.copy_(d)
    return total


def proximal_(
    theta: Tensor, holds: Sequence[Hold], scale: Number, metric: Metric | None = None
) -> None:
    """Move θ, in place, to the minimiser of ½ Σ H (x − θ)² + scale · Σ Ω (x − θ*)².

    H is 1 without a `metric`. For one hold that is θ ← (Hθ + 2·scale·Ω·θ*) / (H + 2·scale·Ω):
    between θ and θ* whatever the scale, and θ itself, to the bit, where scale · Ω is 0.
    """
    if is_nothing(scale) or not holds:
        return
    least = floor(scale)
    squares = () if metric is None else (metric.square,)
    pulls, totals, terms = _Scratch(theta), _Scratch(theta), _Scratch(theta)
    pairs = (tensor for hold in holds for tensor in (hold.importance, hold.anchor))
    for part, *flat in parts(theta, *pairs, *squares):
        total = totals.like(part)
        weight, star = holds[0].omega(flat[0], total), flat[1]
        # Σ Ω + H/(2·scale)
        if metric is None:
            torch.add(weight, least, out=total)
        else:
            _add_floor(weight, metric, flat[-1], least, total)
        if len(holds) == 1 and part.dtype == total.dtype:
            # θ + Ω/(Ω + H/(2·scale)) · (θ* − θ), which is the closed form, and never ∞/∞
            part.lerp_(like(star, part), torch.div(weight, total, out=total))
            continue
        pull = pulls.difference(part, star).mul_(weight)
        for hold, omega, star in zip(holds[1:], flat[2 : 2 * len(holds) : 2], flat[3::2]):
            d = terms.difference(part, star)
            weight = hold.omega(omega, d)
            pull.addcmul_(d, weight)
            total.add_(weight)
        # θ − Σ Ω (θ − θ*) / (Σ Ω + H/(2·scale)): the same for several
        if part.dtype == total.dtype:
            part.addcdiv_(pull, total, value=-1)
        else:
            part.copy_(torch.addcdiv(part.to(total.dtype), pull, total, value=-1, out=total))


def _add_floor(weight: Tensor, metric: Metric, square: Tensor, least: Number, into: Tensor) -> None:
    """Ω + H/(2·scale) for a part, with 1/(2·scale) given as `least`."""
    # Roots of 0 and of denormal numbers, which squares of small gradients are, take CPUs up to
    # thirty times as long as others. And 1/(1/√v) takes half as long as √v, which torch leaves to
    # a library of vector functions.
    inverse = torch.add(like(square, into), TINY, out=into).rsqrt_()
    slope = metric.factor * least
    if not isinstance(slope, Tensor):
        slope = torch.full((), slope, dtype=into.dtype, device=into.device)
    torch.addcdiv(weight, slope, inverse, out=into)
    into.add_(at_least(metric.offset * least))


class _Scratch(Scratch):
    """Memory for a part of θ, in no less than single precision."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__(working_dtype(theta))

    def difference(self, part: Tensor, star: Tensor) -> Tensor:
        """θ − θ* for a part."""
        into = self.like(part)
        return torch.sub(like(part, into), like(star, into), out=into)


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same part of every tensor, one part after another."""
    size = ACCELERATED_PART if is_accelerated(tensors[0]) else PART
    return pieces(*tensors, size=size)
