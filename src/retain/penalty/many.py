"""The penalty on many parameters: small ones a chunk at a time, in a few kernels for all of them.

A chunk is at most as large as a part, so that here too no temporary is as large as the weights; on
an accelerator that saves launches, on a CPU calls from Python. Large parameters go by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import is_
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from retain.penalty import parts
from retain.penalty.hold import (
    LEAST,
    TINY,
    Hold,
    Metric,
    Number,
    at_least,
    floor,
    is_accelerated,
    is_nothing,
    working_dtype,
)

SMALL = 1 << 15  # elements; measured: beyond, memory that is used again is quicker on a CPU
ACCELERATED_SMALL = 1 << 22  # beyond, a kernel runs for longer than it takes to launch the next

Item = TypeVar("Item")


def is_small(theta: Tensor) -> bool:
    """Whether `theta` goes with others."""
    return theta.numel() <= (ACCELERATED_SMALL if is_accelerated(theta) else SMALL)


def values(
    thetas: Sequence[Tensor], holds: Sequence[Sequence[Hold]], *, chunks: Chunks | None = None
) -> list[Tensor]:
    """Σ Ω (θ − θ*)² of every parameter, scalars without λ."""
    found: list[Tensor | None] = [None] * len(thetas)
    for chunk in (chunks or Chunks()).of(thetas, holds):
        theta = _picked(thetas, chunk.at)
        for layer in chunk.layers:
            d = _differences(theta, layer.anchors)
            # Ω (θ − θ*)²   (MAS, eq. 3, without λ)
            weighed = list(torch._foreach_mul(d, d))
            torch._foreach_mul_(weighed, _like(layer.importances, weighed))
            for i, one in zip(chunk.at, weighed, strict=True):
                before = found[i]
                found[i] = one.sum() if before is None else before + one.sum()
    return [
        parts.value(theta, held) if one is None else one
        for one, theta, held in zip(found, thetas, holds, strict=True)
    ]


def add_gradients(
    gradients: Sequence[Tensor | None],
    thetas: Sequence[Tensor],
    holds: Sequence[Sequence[Hold]],
    scale: Number,
    *,
    outs: Callable[[int], Tensor | None] | None = None,
    chunks: Chunks | None = None,
) -> list[Tensor]:
    """`gradients` + scale · Σ 2Ω (θ − θ*), new tensors; None is 0.

    Args:
        gradients: those given; they are not written to.
        thetas: the parameters.
        holds: what holds each of them.
        scale: of the penalty.
        outs: gives memory that may be used for the result of a parameter that is not small.
        chunks: of whoever asks again and again.
    """
    found: list[Tensor | None] = [None] * len(thetas)
    for chunk in (chunks or Chunks()).of(thetas, holds, gradients):
        given = [g for g in _picked(gradients, chunk.at) if g is not None]
        here = scale if not isinstance(scale, Tensor) else scale.to(thetas[chunk.at[0]].device)
        new = _chunk_of_gradients(given, _picked(thetas, chunk.at), chunk.layers, here)
        for i, one in zip(chunk.at, new, strict=True):
            found[i] = one
    return [
        one
        if one is not None
        else parts.add_gradient(
            given,
            theta,
            held,
            scale if not isinstance(scale, Tensor) else scale.to(theta.device),
            out=None if outs is None else outs(i),
        )
        for i, (one, given, theta, held) in enumerate(
            zip(found, gradients, thetas, holds, strict=True)
        )
    ]


def proximals_(
    thetas: Sequence[Tensor],
    holds: Sequence[Sequence[Hold]],
    scales: Sequence[Number],
    metrics: Sequence[Metric | None],
    *,
    chunks: Chunks | None = None,
) -> None:
    """`proximal_` for many parameters, each with its own scale and metric."""
    squares = [None if metric is None else metric.square for metric in metrics]
    moved = [not is_nothing(scale) and bool(held) for scale, held in zip(scales, holds)]
    done = set()
    for chunk in (chunks or Chunks()).of(thetas, holds, squares, only=moved):
        _chunk_of_proximals_(
            _picked(thetas, chunk.at),
            chunk.layers,
            _picked(scales, chunk.at),
            [metric for metric in _picked(metrics, chunk.at) if metric is not None],
        )
        done.update(chunk.at)
    for i, theta in enumerate(thetas):
        if moved[i] and i not in done:
            parts.proximal_(theta, holds[i], scales[i], metrics[i])


def _chunk_of_gradients(
    given: list[Tensor], thetas: list[Tensor], layers: list[Layer], scale: Number
) -> list[Tensor]:
    total: list[Tensor] = []
    dtype = (given or thetas)[0].dtype
    for layer in layers:
        d = _differences(thetas, layer.anchors)
        omegas = _like(layer.importances, d)
        factor = 2 * scale
        if isinstance(factor, Tensor) or not (total or given):
            torch._foreach_mul_(d, factor)
            factor = 1.0
        # g + scale · 2Ω (θ − θ*)   (the gradient of MAS, eq. 3)
        if total:
            torch._foreach_addcmul_(total, d, omegas, value=factor)
        elif given:
            total = list(torch._foreach_addcmul(_like(given, d), d, omegas, value=factor))
        else:
            torch._foreach_mul_(d, omegas)
            total = d
    return _as(total, dtype)


def _chunk_of_proximals_(
    thetas: list[Tensor],
    layers: list[Layer],
    scales: list[Number],
    metrics: list[Metric],
) -> None:
    """Move a chunk; `metrics` are of all of them, or empty."""
    working = _as(thetas, working_dtype(thetas[0]))
    # Of Ω and H, the one beside which a scale is known to the host is multiplied by it: a kernel
    # for all adds numbers that the host knows, and multiplies by those that only a device does.
    twice: float | Tensor | list[float] | list[Tensor] | None = None
    least = [1.0] * len(scales)
    if any(isinstance(scale, Tensor) for scale in scales):
        twice = _scalars([2 * scale for scale in scales], working)
    else:
        floors = {scale: float(floor(scale)) for scale in set(scales)}
        least = [floors[scale] for scale in scales]
    omegas = _weighed(layers[0], working, twice)
    # Σ Ω + H/(2·scale), or 2·scale times that
    total = _floors(metrics, least, working)
    total = list(
        torch._foreach_add(omegas, _scalars(least, working))
        if total is None
        else torch._foreach_add(total, omegas)
    )
    if len(layers) == 1:
        # θ + Ω/(Ω + H/(2·scale)) · (θ* − θ), which is the closed form, and never ∞/∞
        stars = _like(layers[0].anchors, working)
        torch._foreach_lerp_(working, stars, list(torch._foreach_div(omegas, total)))
    else:
        pull = _differences(working, layers[0].anchors)
        torch._foreach_mul_(pull, omegas)
        for layer in layers[1:]:
            omegas = _weighed(layer, working, twice)
            d = _differences(working, layer.anchors)
            torch._foreach_addcmul_(pull, d, omegas)
            torch._foreach_add_(total, omegas)
        # θ − Σ Ω (θ − θ*) / (Σ Ω + H/(2·scale)): the same for several
        torch._foreach_addcdiv_(working, pull, total, value=-1)
    if working is not thetas:
        torch._foreach_copy_(thetas, working)


def _weighed(
    layer: Layer, beside: list[Tensor], twice: float | Tensor | Sequence[Number] | None
) -> list[Tensor]:
    """Ω, or 2·scale·Ω, short of infinity."""
    omegas = _like(layer.importances, beside)
    if twice is None:
        return omegas
    weighed = list(torch._foreach_mul(omegas, twice))  # type: ignore[arg-type]
    torch._foreach_clamp_max_(weighed, 1 / LEAST)
    return weighed


def _floors(metrics: list[Metric], least: list[float], beside: list[Tensor]) -> list[Tensor] | None:
    """H · least; None where H is 1."""
    if not metrics:
        return None
    total = list(torch._foreach_add(_like([metric.square for metric in metrics], beside), TINY))
    torch._foreach_sqrt_(total)
    factors = [metric.factor for metric in metrics]
    if not any(isinstance(factor, Tensor) for factor in factors):
        factors = [factor * one for factor, one in zip(factors, least, strict=True)]
    elif any(one != 1 for one in least):
        torch._foreach_mul_(total, _scalars(least, beside))
    torch._foreach_mul_(total, _scalars(factors, beside))
    offsets: list[Number] = [
        at_least(metric.offset * one) for metric, one in zip(metrics, least, strict=True)
    ]
    torch._foreach_add_(total, _scalars(offsets, beside))
    return total


class Chunk(NamedTuple):
    """Indices of small parameters that are computed on at once, and what holds these.

    Attributes:
        at: the indices.
        layers: the first hold of each, then the second of each, …: as many as each has.
    """

    at: list[int]
    layers: list[Layer]


class Layer(NamedTuple):
    """One Ω and θ* of each parameter in a chunk."""

    importances: list[Tensor]
    anchors: list[Tensor]


class Chunks:
    """Which parameters go together; for whoever asks at every step, worked out once.

    They are of one kind, and not too many. Of one kind are those whose tensors agree, one by one,
    in device and type.
    """

    def __init__(self) -> None:
        self._holds: list[Sequence[Hold]] = []
        self._kinds: tuple[object, ...] = ()
        self._found: list[Chunk] = []

    def of(
        self,
        thetas: Sequence[Tensor],
        holds: Sequence[Sequence[Hold]],
        others: Sequence[Tensor | None] | None = None,
        *,
        only: Sequence[bool] | None = None,
    ) -> list[Chunk]:
        """The chunks of these parameters, each with what holds it and another tensor beside it."""
        beside = (
            None if others is None else [one if one is None else kind_of(one) for one in others]
        )
        kinds = [(one.numel(), kind_of(one)) for one in thetas], beside, only
        same = len(holds) == len(self._holds) and all(map(is_, holds, self._holds))
        if not same or kinds != self._kinds:
            self._found = list(_chunks(thetas, holds, others, only))
            self._holds, self._kinds = list(holds), kinds
        return self._found


def kind_of(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    """In what, and on what, it is computed."""
    return tensor.dtype, tensor.device


def _chunks(
    thetas: Sequence[Tensor],
    holds: Sequence[Sequence[Hold]],
    others: Sequence[Tensor | None] | None,
    only: Sequence[bool] | None,
) -> Iterator[Chunk]:
    kinds: dict[object, list[int]] = {}
    for i, (theta, held) in enumerate(zip(thetas, holds, strict=True)):
        if not held or not is_small(theta) or (only is not None and not only[i]):
            continue
        if any(hold.unit != 1 for hold in held):  # each has its own
            continue
        other = None if others is None else others[i]
        tensors = [theta, *(t for hold in held for t in (hold.importance, hold.anchor))]
        if other is not None:
            tensors.append(other)
        kinds.setdefault((other is None, *map(kind_of, tensors)), []).append(i)
    for alike in kinds.values():
        first = thetas[alike[0]]
        room = size = parts.ACCELERATED_PART if is_accelerated(first) else parts.PART
        chunk: list[int] = []
        for i in alike:
            if chunk and thetas[i].numel() > room:
                yield Chunk(chunk, _layers(holds, chunk))
                chunk, room = [], size
            chunk.append(i)
            room -= thetas[i].numel()
        yield Chunk(chunk, _layers(holds, chunk))


def _picked(items: Sequence[Item], chunk: list[int]) -> list[Item]:
    return [items[i] for i in chunk]


def _layers(holds: Sequence[Sequence[Hold]], chunk: list[int]) -> list[Layer]:
    return [
        Layer([hold.importance for hold in layer], [hold.anchor for hold in layer])
        for layer in zip(*(holds[i] for i in chunk), strict=True)
    ]


def _differences(thetas: list[Tensor], stars: list[Tensor]) -> list[Tensor]:
    """θ − θ*, in no less than single precision."""
    working = _as(thetas, working_dtype(thetas[0]))
    return list(torch._foreach_sub(working, _like(stars, working)))


def _as(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """`tensors` themselves, or copies in another type."""
    return _moved(tensors, tensors[0].device, dtype)


def _like(tensors: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """`tensors` where `others` are, in their type: themselves, or copies."""
    return _moved(tensors, others[0].device, others[0].dtype)


def _moved(tensors: list[Tensor], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    if tensors[0].dtype == dtype and tensors[0].device == device:
        return tensors
    copies = [
        torch.empty_like(one, device=device, dtype=dtype, requires_grad=False) for one in tensors
    ]
    torch._foreach_copy_(copies, tensors, non_blocking=is_accelerated(copies[0]))
    return copies


def _scalars(
    numbers: Sequence[Number], beside: list[Tensor]
) -> list[float] | list[Tensor] | float | Tensor:
    """What a kernel for all takes: one number if they are the same, or one for each."""
    first = numbers[0]
    if all(number is first for number in numbers):
        return first.to(beside[0].device) if isinstance(first, Tensor) else first
    known = [number for number in numbers if not isinstance(number, Tensor)]
    if len(known) == len(numbers):
        return known[0] if len(set(known)) == 1 else known
    device, dtype = beside[0].device, beside[0].dtype
    return [
        number.to(device)
        if isinstance(number, Tensor)
        else torch.full((), number, dtype=dtype, device=device)
        for number in numbers
    ]
