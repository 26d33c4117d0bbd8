"""Which sample owns which element of a gradient: found by probing, never assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

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


def base_for(dtype: torch.dtype) -> int:
    """How many samples one probe can tell apart: 2^(base−1) must not leave the dtype's range."""
    return 6 if dtype == torch.float16 else 32


def probe_weights(samples: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Weights [n] of the probing passes: ones, then 2^digit for each digit of a sample's number."""
    base, weights = base_for(dtype), []
    number = torch.arange(samples, device=device)
    weights.append(torch.ones(samples, dtype=dtype, device=device))
    while True:
        weights.append(torch.exp2((number % base).to(dtype)))
        number = number // base
        if not number.any():
            return weights


def verifying_weights(samples: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Powers of two [n] for one more pass, in no order that a layout could follow by accident."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(samples))
    return torch.exp2((order % base_for(dtype)).to(device, dtype))


def find_layouts(probes: list[Tensor], samples: int) -> list[Layout]:
    """The layouts that explain a gradient; none where elements belong to several samples at once.

    `probes` are the gradients of the probing passes, for `probe_weights`. Where there is no
    `Blocks`, there is one `Owners` at most.
    """
    weights = probe_weights(samples, probes[0].real.dtype, probes[0].device)
    regular: list[Layout] = [*find_blocks(probes, weights)]
    if regular:
        return regular
    owner = owners(probes, samples)
    return [] if owner is None else [_irregular(owner, samples)]


def find_blocks(probes: list[Tensor], weights: list[Tensor]) -> list[Blocks]:
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
    samples, weights = len(weights[0]), weights[1:]
    fitting = []
    for dim, size in enumerate(ones.shape):
        if size % samples:
            continue
        index = torch.arange(size, device=ones.device)
        few = [_thinned(probe, dim) for probe in probes]
        for inner in _divisors(size // samples):
            owner = index // inner % samples
            factors = [_along(w[owner], dim, ones.ndim) for w in weights]
            # a glance at a few elements refuses nearly every wrong one
            if all(_scaled(few[0], f, p) for f, p in zip(factors, few[1:])) and all(
                _scaled(ones, f, p) for f, p in zip(factors, others)
            ):
                fitting.append(Blocks(dim, size // samples // inner, samples, inner))
    return fitting


def _thinned(tensor: Tensor, dim: int) -> Tensor:
    """Some four indices of every dimension but `dim`, which stays whole."""
    for other, size in enumerate(tensor.shape):
        if other != dim and size > 4:
            tensor = tensor[(slice(None),) * other + (slice(None, None, size // 4),)]
    return tensor


def _along(values: Tensor, dim: int, ndim: int) -> Tensor:
    return values.view([-1 if d == dim else 1 for d in range(ndim)])


def _scaled(ones: Tensor, factors: Tensor, probe: Tensor) -> bool:
    """Whether every element of `probe` is that of `ones` times its factor. NaN never is."""
    expected = ones * factors
    if torch.equal(probe, expected):
        return True
    return bool(((probe - expected).abs() <= _tolerance(ones) * expected.abs()).all())


def _tolerance(tensor: Tensor) -> float:
    return 1e-2 if tensor.dtype.itemsize < 4 else 1e-4


def owners(probes: list[Tensor], samples: int) -> Tensor | None:
    """The owner of every element, or None where elements belong to several samples at once.

    `probes` are the gradients of Σ sₖ and of Σ 2^digit(k) sₖ. Backward is linear, and powers of
    two are exact in floating point: an element owned by sample k is multiplied by exactly
    2^digit(k), a sum over samples is not.
    """
    ones, base = probes[0], base_for(probes[0].dtype)
    known = ones != 0
    owner = torch.zeros(ones.shape, dtype=torch.long, device=ones.device)
    tolerance = _tolerance(ones)
    for place, probe in enumerate(probes[1:]):
        if bool(((probe != 0) & ~known).any()):
            return None  # a sum over samples that happens to cancel
        ratio = (probe.abs() / ones.abs()).nan_to_num(
            1.0, 1.0, 1.0
        )  # complex numbers have sizes too
        digit = torch.log2(ratio.clamp_min(0.5).float()).round().clamp(0, base - 1)
        expected = ones * torch.exp2(digit).to(ones.dtype)
        fits = (probe - expected).abs() <= tolerance * expected.abs()
        if not bool((fits | ~known).all()):
            return None
        owner += digit.long() * base**place
    if bool((owner[known] >= samples).any()):
        return None
    return torch.where(known, owner, NOBODY)


def _irregular(owner: Tensor, samples: int) -> Owners:
    """A tensor of owners, as small as it can be: along the one dimension in which they change."""
    if owner.numel() == 0:  # an expert that was given no token
        empty = owner.shape.index(0)
        sizes = [0 if dim == empty else 1 for dim in range(owner.ndim)]
        return Owners(owner.new_empty(sizes), samples, empty)
    for dim, size in enumerate(owner.shape):
        lines = owner.movedim(dim, 0).reshape(size, -1)
        high = lines.amax(1)
        low = torch.where(lines == NOBODY, high[:, None], lines).amin(1)
        if torch.equal(high, low):
            others = [other for other in range(owner.ndim) if other != dim]
            return Owners(owner.amax(others, keepdim=True) if others else owner, samples, dim)
    return Owners(owner, samples, None)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
