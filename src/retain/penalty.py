"""λ Σ Ω (θ − θ*)² in three forms: a value, a gradient, and a proximal step.

All of them go through the weights in parts that fit into the cache, so that none needs a temporary
as large as the model. Several (Ω, θ*) pairs may hold the same weight: their penalties add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PART = 1 << 20  # elements; measured: what is made of a part stays in the last cache of a CPU
TINY = 1e-36  # far below the square of any optimizer's ε
LEAST = 1e-30  # of what is added to Ω before dividing by it: beyond, only θ* is left anyway


class Hold(NamedTuple):
    """One quadratic Σ Ω (θ − θ*)² on one parameter."""

    importance: Tensor
    anchor: Tensor


class Metric(NamedTuple):
    """H = factor · √square + offset, per element: by what an optimizer divides its steps."""

    square: Tensor
    factor: float
    offset: float


def value(theta: Tensor, holds: Sequence[Hold]) -> Tensor:
    """Σ Ω (θ − θ*)² over the elements of one parameter and over `holds`: a scalar, without λ."""
    scratch = _Scratch(theta)
    total = torch.zeros((), dtype=scratch.dtype, device=theta.device)
    for hold in holds:
        for part, omega, star in _parts(theta, *hold):
            d = scratch.difference(part, star)
            # Ω (θ − θ*)²   (MAS, eq. 3, without λ)
            total += d.square_().mul_(_like(omega, d)).sum()
    return total


def add_gradient(
    gradient: Tensor | None,
    theta: Tensor,
    holds: Sequence[Hold],
    scale: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """`gradient` + scale · Σ 2Ω (θ − θ*) for one parameter, in `out` or a new tensor; None is 0."""
    total = torch.empty_like(theta if gradient is None else gradient) if out is None else out
    scratch = _Scratch(theta)
    for index, hold in enumerate(holds):
        before = total if index else gradient
        for target, part, omega, star, *given in _parts(
            total, theta, *hold, *(() if before is None else (before,))
        ):
            d = scratch.difference(part, star)
            weight = _like(omega, d)
            same = target.dtype == d.dtype
            # g + scale · 2Ω (θ − θ*)   (the gradient of MAS, eq. 3)
            if not given:
                torch.mul(d.mul_(2 * scale), weight, out=target if same else d)
            elif same and given[0].dtype == d.dtype:
                torch.addcmul(given[0], d, weight, value=2 * scale, out=target)
            else:
                torch.addcmul(given[0].to(d.dtype), d, weight, value=2 * scale, out=d)
            if not same:
                target.copy_(d)
    return total


def add_gradients(
    gradients: Sequence[Tensor | None],
    thetas: Sequence[Tensor],
    holds: Sequence[Sequence[Hold]],
    scale: float,
    outs: Sequence[Tensor | None],
) -> list[Tensor]:
    """`add_gradient` for many parameters; in a few kernels for all of them on an accelerator."""
    if _uniform_on_accelerator(gradients, thetas, holds):
        return _add_gradients_at_once([g for g in gradients if g is not None], thetas, holds, scale)
    return [
        add_gradient(g, theta, held, scale, out=out)
        for g, theta, held, out in zip(gradients, thetas, holds, outs, strict=True)
    ]


def proximal_(
    theta: Tensor, holds: Sequence[Hold], scale: float, metric: Metric | None = None
) -> None:
    """Move θ, in place, to the minimiser of ½ Σ H (x − θ)² + scale · Σ Ω (x − θ*)².

    H is 1 without a `metric`. For one hold that is θ ← (Hθ + 2·scale·Ω·θ*) / (H + 2·scale·Ω):
    between θ and θ* whatever the scale, and θ itself, to the bit, where scale · Ω is 0.
    """
    if scale == 0 or not holds:
        return
    least = max(1 / (2 * scale), LEAST)
    squares = () if metric is None else (metric.square,)
    pulls, totals, terms = _Scratch(theta), _Scratch(theta), _Scratch(theta)
    for part, *flat in _parts(theta, *(tensor for hold in holds for tensor in hold), *squares):
        total = totals.like(part)
        weight, star = _like(flat[0], total), flat[1]
        # Σ Ω + H/(2·scale)
        if metric is None:
            torch.add(weight, least, out=total)
        else:
            _add_floor(weight, metric, flat[-1], least, total)
        if len(holds) == 1 and part.dtype == total.dtype:
            # θ + Ω/(Ω + H/(2·scale)) · (θ* − θ), which is the closed form, and never ∞/∞
            part.lerp_(_like(star, part), torch.div(weight, total, out=total))
            continue
        pull = pulls.difference(part, star).mul_(weight)
        for omega, star in zip(flat[2 : 2 * len(holds) : 2], flat[3::2]):
            d = terms.difference(part, star)
            pull.addcmul_(d, _like(omega, d))
            total.add_(_like(omega, d))
        # θ − Σ Ω (θ − θ*) / (Σ Ω + H/(2·scale)): the same for several
        if part.dtype == total.dtype:
            part.addcdiv_(pull, total, value=-1)
        else:
            part.copy_(torch.addcdiv(part.to(total.dtype), pull, total, value=-1, out=total))


def _add_floor(weight: Tensor, metric: Metric, square: Tensor, least: float, into: Tensor) -> None:
    """Ω + H/(2·scale) for a part, with 1/(2·scale) given as `least`."""
    # Roots of 0 and of denormal numbers, which squares of small gradients are, take CPUs up to
    # thirty times as long as others. And 1/(1/√v) takes half as long as √v, which torch leaves to
    # a library of vector functions.
    inverse = torch.add(_like(square, into), TINY, out=into).rsqrt_()
    one = torch.ones((), dtype=into.dtype, device=into.device)
    torch.addcdiv(weight, one, inverse, value=metric.factor * least, out=into)
    into.add_(max(metric.offset * least, LEAST))


class Penalty(torch.autograd.Function):
    """scale · Σ Ω (θ − θ*)² over many parameters, differentiable once in θ."""

    @staticmethod
    def forward(
        ctx: Any,
        holds: Sequence[Sequence[Hold]],
        scale: float,
        used: Callable[[float], None],
        *thetas: Tensor,
    ) -> Tensor:
        """The value; `used` is told the weight with which the penalty enters a gradient."""
        ctx.save_for_backward(*thetas)
        ctx.holds, ctx.scale, ctx.used = holds, scale, used
        first = thetas[0].device
        dtype = max((_Scratch(theta).dtype for theta in thetas), key=lambda kind: kind.itemsize)
        values = [value(t, h).to(first, dtype) for t, h in zip(thetas, holds, strict=True)]
        return torch.stack(values).sum() * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Weight · scale · 2Ω (θ − θ*) for every parameter that wants a gradient."""
        weight = float(incoming)
        ctx.used(weight)
        wanted = ctx.needs_input_grad[3:]
        gradients = [
            add_gradient(None, theta, holds, ctx.scale * weight) if want else None
            for theta, holds, want in zip(ctx.saved_tensors, ctx.holds, wanted, strict=True)
        ]
        return None, None, None, *gradients


def _add_gradients_at_once(
    gradients: Sequence[Tensor],
    thetas: Sequence[Tensor],
    holds: Sequence[Sequence[Hold]],
    scale: float,
) -> list[Tensor]:
    total = list(gradients)
    for layer in zip(*holds, strict=True):
        d = torch._foreach_sub(list(thetas), [hold.anchor for hold in layer])
        omegas = [hold.importance for hold in layer]
        total = list(torch._foreach_addcmul(total, d, omegas, value=2 * scale))
    return total


def _uniform_on_accelerator(
    gradients: Sequence[Tensor | None],
    thetas: Sequence[Tensor],
    holds: Sequence[Sequence[Hold]],
) -> bool:
    """Whether everything is in float32 on one accelerator, and held equally often."""
    tensors = [*gradients, *thetas, *(t for many in holds for hold in many for t in hold)]
    first = thetas[0].device
    return (
        first.type != "cpu"
        and len({len(many) for many in holds}) == 1
        and all(t is not None and t.device == first and t.dtype == torch.float32 for t in tensors)
    )


class _Scratch:
    """Memory for a part of θ, in no less than single precision, used again for every part.

    Fresh memory would cost more than the arithmetic that is done in it.
    """

    def __init__(self, theta: Tensor) -> None:
        self.dtype = theta.dtype if theta.dtype == torch.float64 else torch.float32
        self._kept: Tensor | None = None

    def like(self, part: Tensor) -> Tensor:
        """The memory, shaped like `part`; what was in it is lost."""
        if self._kept is None or self._kept.shape != part.shape:
            self._kept = torch.empty_like(part, dtype=self.dtype, requires_grad=False)
        return self._kept

    def difference(self, part: Tensor, star: Tensor) -> Tensor:
        """θ − θ* for a part."""
        into = self.like(part)
        return torch.sub(_like(part, into), _like(star, into), out=into)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same part of every tensor, one part after another; the whole ones off the CPU."""
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= PART:
        yield tensors
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(PART) for tensor in tensors), strict=True)
        return
    # Whole rows where they fit, so that a part is contiguous; the longest dimension otherwise.
    rows_fit = first.numel() // first.shape[0] <= PART
    dim = 0 if rows_fit else max(range(first.ndim), key=lambda d: first.shape[d])
    count = max(1, PART * first.shape[dim] // first.numel())
    yield from zip(*(tensor.split(count, dim) for tensor in tensors), strict=True)


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return tensor.to(other.device, other.dtype)
