"""Which sample owns which element of a gradient: found by probing, never assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from retain.per_sample.precision import Precision

GLANCED_AT = 64  # elements of a gradient
NOBODY = -1  # an element whose gradient is zero, which says nothing about its owner


@dataclass(frozen=True)
class Blocks:
    """Samples in regular blocks of one dimension, whose size is outer · samples · inner.

    Index i of that dimension belongs to sample (i // inner) mod samples: [n, T, d] has outer =
    inner = 1; a flattened [n·T, d] has inner = T; a sequence-first [T·n, d] has outer = T.
    """

    dim: int
    outer: int
    samples: int
    inner: int

    @property
    def order(self) -> tuple[int, int, int]:
        """What it is for any number of samples."""
        return self.dim, self.outer, self.inner

    def split(self, tensor: Tensor, dim: int | None = None) -> Tensor:
        """`tensor` with the dimension that holds samples made into three: outer, samples, inner."""
        at = self.dim if dim is None else dim
        sizes = (self.outer, self.samples, self.inner)
        return cast(Tensor, tensor.unflatten(at, sizes))

    def only(self, tensor: Tensor, sample: int) -> Tensor:
        """A copy of `tensor` in which all but one sample is zero."""
        alone = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        at = self.dim + 1
        self.split(alone).select(at, sample).copy_(self.split(tensor).select(at, sample))
        return alone

    def grown(self, samples: int, size: int) -> Blocks | None:
        """The same layout for another number of samples, if a dimension of `size` fits it."""
        if size != self.outer * samples * self.inner:
            return None
        return Blocks(self.dim, self.outer, samples, self.inner)


@dataclass(frozen=True, eq=False)
class Owners:
    """Any other ownership: the owner of every element, in a tensor that broadcasts to the gradient.

    `dim` is the one dimension along which the owner changes, or None where it is not one.
    """

    owner: Tensor
    samples: int
    dim: int | None

    def only(self, tensor: Tensor, sample: int) -> Tensor:
        """A copy of `tensor` in which all but one sample is zero."""
        return torch.where(self.owner == sample, tensor, torch.zeros_like(tensor))


Layout = Blocks | Owners


def probe_weights(
    samples: int, precision: Precision, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Weights [n] of the probing passes: ones, then 2^digit for each digit of a sample's number."""
    base, weights = precision.exponents, []
    number = torch.arange(samples, device=device)
    weights.append(torch.ones(samples, dtype=dtype, device=device))
    while True:
        weights.append(torch.exp2((number % base).to(dtype)))
        number = number // base
        if not number.any():
            return weights


def verifying_weights(
    samples: int, precision: Precision, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Weights [n] for one more pass, in no order that a layout could follow by accident.

    Powers of two; and where there are more samples than those, numbers between them, as long as
    rounding leaves them apart.
    """
    base = precision.exponents
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(samples)).to(device)
    between = 1 + (order // base) / (samples // base + 1)
    apart = between if precision.dtype.itemsize >= 4 else torch.ones_like(between)
    return (torch.exp2((order % base).double()) * apart).to(dtype)


def find_layouts(probes: list[Tensor], weights: list[Tensor], precision: Precision) -> list[Layout]:
    """The layouts that explain a gradient; none where elements belong to more than one sample.

    `probes` are the gradients of passes with these `weights`, of `probe_weights`. Where there is
    no `Blocks`, there is one `Owners` at most.
    """
    regular: list[Layout] = [*find_blocks(probes, weights, precision)]
    if regular:
        return regular
    owner = find_owners(probes, weights, precision)
    return [] if owner is None else [owner]


def find_blocks(probes: list[Tensor], weights: list[Tensor], precision: Precision) -> list[Blocks]:
    """Every `Blocks` that explains all elements.

    Where most gradients are zero (a class token), or one layout looks like another for this number
    of samples, more than one may fit. Any of them is right for the gradients at hand, but only one
    that fits alone may be used for another batch.

    `probes` are the gradients of passes in which the samples had these `weights` [n], the first of
    them ones.
    """
    ones, *others = probes
    if ones.numel() == 0 or ones.ndim == 0:
        return []
    samples, glance = len(weights[0]), _Glance(probes, weights, precision)
    fitting = []
    for dim, size in enumerate(ones.shape):
        layouts = [
            Blocks(dim, size // samples // inner, samples, inner)
            for inner in (_divisors(size // samples) if size % samples == 0 else ())
        ]
        layouts = [layout for layout in layouts if not glance.refuses(layout)]
        if not layouts:
            continue
        largest = _lines(ones.abs(), dim)
        floor = precision.zero * largest.max()
        index = torch.arange(size, device=ones.device)
        for layout in layouts:
            owner = index // layout.inner % samples
            own = layout.split(largest, 0).amax((0, 2))[owner]  # what noise is relative to
            allowed = precision.layout * own + floor
            if all(_scaled(ones, w[owner], p, allowed, dim) for w, p in zip(weights[1:], others)):
                fitting.append(layout)
    return fitting


class _Glance:
    """Refuses nearly every layout that does not explain all elements, by a few of them.

    Which are the largest ones of as many parts, looked at as plain numbers: a tensor operation for
    each layout that there might be takes longer than all of a small gradient.
    """

    def __init__(self, probes: list[Tensor], weights: list[Tensor], precision: Precision) -> None:
        ones = probes[0]
        sizes = ones.abs().flatten()
        parts = min(GLANCED_AT, len(sizes))
        long = len(sizes) // parts
        where = sizes[: parts * long].view(parts, long).argmax(1)
        places = where + long * torch.arange(parts, device=where.device)
        self._places: list[int] = places.tolist()
        self._of_ones, *self._others = (probe.flatten()[places].tolist() for probe in probes)
        self._weights: list[list[float]] = [w.tolist() for w in weights[1:]]
        # twice of what is allowed anywhere, as these numbers are rounded in another way
        self._allowed = 2 * (precision.layout + precision.zero) * float(sizes.max())
        self._strides = [ones.shape[dim + 1 :].numel() for dim in range(ones.ndim)]
        self._sizes = ones.shape

    def refuses(self, layout: Blocks) -> bool:
        """Whether an element is not as many times what it was as its owner's score."""
        if not math.isfinite(self._allowed):
            return False
        stride, size = self._strides[layout.dim], self._sizes[layout.dim]
        for at, one, *others in zip(self._places, self._of_ones, *self._others):
            owner = at // stride % size // layout.inner % layout.samples
            for other, weights in zip(others, self._weights):
                factor = weights[owner]
                if not abs(other - one * factor) <= self._allowed * factor:
                    return True
        return False


def _lines(sizes: Tensor, dim: int) -> Tensor:
    """The largest in each line, a line being all elements with one index of `dim`."""
    over = [other for other in range(sizes.ndim) if other != dim]
    return sizes.amax(over) if over else sizes


def _scaled(ones: Tensor, factors: Tensor, probe: Tensor, allowed: Tensor, dim: int) -> bool:
    """Whether `probe` is `ones` times the factors of its lines, but for what noise is allowed.

    The noise of a line grows with its factor. NaN never fits.
    """
    along = [-1 if d == dim else 1 for d in range(ones.ndim)]
    expected = ones * factors.view(along)
    if torch.equal(probe, expected):
        return True
    off = _lines((probe - expected).abs(), dim)
    return bool((off <= allowed * factors).all())


def find_owners(probes: list[Tensor], weights: list[Tensor], precision: Precision) -> Owners | None:
    """The owner of every element, or None where elements belong to more than one sample.

    Along one dimension, if that explains all elements up to noise; otherwise element by element,
    which only exact powers of two can.
    """
    if probes[0].numel() == 0:  # an expert that was given no token
        shape = probes[0].shape
        empty = shape.index(0)
        sizes = [0 if dim == empty else 1 for dim in range(len(shape))]
        owner = torch.empty(sizes, dtype=torch.long, device=probes[0].device)
        return Owners(owner, len(weights[0]), empty)
    for dim in range(probes[0].ndim):
        lines = _owners_of_lines(probes, weights, precision, dim)
        if lines is not None:
            sizes = [-1 if d == dim else 1 for d in range(probes[0].ndim)]
            return Owners(lines.view(sizes), len(weights[0]), dim)
    each = owners(probes, weights, precision)
    return None if each is None else Owners(each, len(weights[0]), None)


def _owners_of_lines(
    probes: list[Tensor], weights: list[Tensor], precision: Precision, dim: int
) -> Tensor | None:
    """The owner of every line, by how its size grew; None unless that explains all elements."""
    over = [other for other in range(probes[0].ndim) if other != dim]
    sizes = [
        torch.linalg.vector_norm(probe, dim=over, dtype=_wide(probe)) if over else probe.abs()
        for probe in probes
    ]
    owner = owners(sizes, weights, precision, exactly=False)
    if owner is None:
        return None
    known = owner != NOBODY
    largest = _lines(probes[0].abs(), dim)
    own = largest.new_zeros(len(weights[0])).scatter_reduce_(
        0, owner[known], largest[known], "amax"
    )
    held = owner.clamp_min(0)
    allowed = precision.layout * own[held] * known + precision.zero * largest.max()
    fits = all(
        _scaled(probes[0], w[held], probe, allowed, dim)
        for w, probe in zip(weights[1:], probes[1:])
    )
    return owner if fits else None


def owners(
    probes: list[Tensor],
    weights: list[Tensor],
    precision: Precision,
    *,
    exactly: bool = True,
) -> Tensor | None:
    """The owner of every element, or None where elements belong to more than one sample.

    `probes` are the gradients of Σ sₖ and of Σ 2^digit(k) sₖ. Backward is linear, and powers of
    two are exact in floating point: an element owned by sample k is multiplied by exactly
    2^digit(k), a sum over samples is not. If not `exactly`, the nearest power of two is taken for
    granted.
    """
    ones, base = probes[0], precision.exponents
    known = ones != 0 if exactly else ones > precision.zero * ones.max()
    owner = torch.zeros(ones.shape, dtype=torch.long, device=ones.device)
    for place, probe in enumerate(probes[1:]):
        if exactly and bool(((probe != 0) & ~known).any()):
            return None  # a sum over samples that happens to cancel
        ratio = probe.abs() / ones.abs()  # complex numbers have sizes too
        ratio = ratio.nan_to_num(1.0, 1.0, 1.0)
        digit = torch.log2(ratio.clamp_min(0.5).float()).round().clamp(0, base - 1)
        expected = ones * torch.exp2(digit).to(ones.dtype)
        fits = (probe - expected).abs() <= precision.layout * expected.abs()
        if exactly and not bool((fits | ~known).all()):
            return None
        owner += digit.long() * base**place
    if bool((owner[known] >= len(weights[0])).any()):
        return None
    return torch.where(known, owner, NOBODY)


def _wide(tensor: Tensor) -> torch.dtype | None:
    """The type to sum in: None for the tensor's own."""
    if tensor.dtype.itemsize >= 4:
        return None
    return torch.float32


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
