"""The forms in which the gradients of a batch of samples can be held without n × P memory.

Shapes: n samples, m of them that are taken together, t positions inside a sample (tokens, pixels,
steps), r = all rows of a batch, p × q the weight. Every contribution can add the gradients of some
samples to a buffer; how |gₖ|ᵖ is summed over the samples is told in summing.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from retain.per_sample.layout import NOBODY, Blocks, Layout, Owners


class Contribution(Protocol):
    """What one use of a parameter contributes to the gradients of the samples."""

    route: str

    def add_samples(self, start: int, stop: int, out: Tensor) -> None:
        """Add the gradients of samples `start` to `stop` to `out` [m, *shape of the gradient]."""
        ...


@dataclass(eq=False)
class Factors:
    """gₖ = Lₖᵀ Rₖ: a linear map, whose weight sees one outer product per row.

    L [r, p] and R [r, q] hold the rows of all samples, in the order that `layout` says; or
    L [n, t, p] and R [n, t, q], samples first, where `layout` is None.
    """

    left_rp: Tensor
    right_rq: Tensor
    layout: Layout | None
    route: str = "linear"

    @property
    def shape(self) -> torch.Size:
        """The shape of gₖ, p × q."""
        return torch.Size((self.left_rp.shape[-1], self.right_rq.shape[-1]))

    @property
    def transposed(self) -> Factors:
        """The same gradients, of the transposed weight."""
        return Factors(self.right_rq, self.left_rp, self.layout, self.route)

    @cached_property
    def _rows(self) -> list[Tensor]:
        assert isinstance(self.layout, Owners)
        owner = self.layout.owner.reshape(-1)
        return [(owner == k).nonzero().flatten() for k in range(self.layout.samples)]

    @cached_property
    def positions(self) -> tuple[Tensor, Tensor]:
        """L [n, t, p] and R [n, t, q]; a view wherever samples are contiguous."""
        if self.layout is None:
            return self.left_rp, self.right_rq
        assert isinstance(self.layout, Blocks)
        if self.layout.outer == 1:
            n, t = self.layout.samples, self.layout.inner
            left, right = (rows.unflatten(0, (n, t)) for rows in (self.left_rp, self.right_rq))
            return left, right
        left, right = (
            self.layout.split(rows, 0).movedim(1, 0).flatten(1, 2)
            for rows in (self.left_rp, self.right_rq)
        )
        return left, right

    def add_samples(self, start: int, stop: int, out: Tensor) -> None:
        """Add Lₖᵀ Rₖ to `out` [m, p, q]."""
        gradients = out.view(-1, *self.shape)
        if isinstance(self.layout, Owners):
            for rows, gradient in zip(self._rows[start:stop], gradients):
                left, right = self.left_rp[rows].to(out.dtype), self.right_rq[rows].to(out.dtype)
                gradient.addmm_(left.T, right)
            return
        left, right = (side[start:stop].to(out.dtype) for side in self.positions)
        gradients.baddbmm_(left.mT, right)


@dataclass(eq=False)
class Grouped:
    """gₖ [groups, q, p] has a product Lᵀ R of its own for each group of rows: an expert's tokens.

    L [r, q] and R [r, p] hold the rows of all samples and groups; those of nobody are left out.
    """

    left_rq: Tensor
    right_rp: Tensor
    group_r: Tensor
    owner_r: Tensor
    route: str = "linear"

    @cached_property
    def pieces(self) -> list[tuple[int, int, Tensor, Tensor]]:
        """A group, a sample, and L and R of the rows of both; the device is waited for once."""
        owned = (self.owner_r != NOBODY).nonzero().flatten()
        samples = int(self.owner_r.max()) + 1 if len(owned) else 1
        keys = self.group_r[owned] * samples + self.owner_r[owned]
        order = owned[keys.argsort()]
        numbers, counts = torch.unique(keys, return_counts=True)
        sides = (side[order].split(counts.tolist()) for side in (self.left_rq, self.right_rp))
        return [(*divmod(key, samples), *rows) for key, *rows in zip(numbers.tolist(), *sides)]

    def add_samples(self, start: int, stop: int, out: Tensor) -> None:
        """Add gₖ to `out` [m, groups, q, p]."""
        for group, sample, left, right in self.pieces:
            if start <= sample < stop:
                out[sample - start, group].addmm_(left.T.to(out.dtype), right.to(out.dtype))


@dataclass(eq=False)
class SampleGradients:
    """gₖ itself, [n, *shape]: small, since it is a sum over part of an activation's gradient."""

    values: Tensor
    route: str = "elementwise"

    def add_samples(self, start: int, stop: int, out: Tensor) -> None:
        """Add gₖ to `out`."""
        out += self.values[start:stop]


@dataclass(eq=False)
class Lookups:
    """gₖ has the rows of `values` [r, d] added at `tokens` [r]: an embedding's gradient.

    The table is seen as rows of d numbers, whatever its shape.
    """

    tokens_r: Tensor
    values_rd: Tensor
    owner_r: Tensor
    route: str = "embedding"

    @classmethod
    def together(cls, contributions: list[Lookups]) -> Lookups:
        """Several uses of one table as one."""
        if len(contributions) == 1:
            return contributions[0]
        return cls(
            torch.cat([contribution.tokens_r for contribution in contributions]),
            torch.cat([contribution.values_rd for contribution in contributions]),
            torch.cat([contribution.owner_r for contribution in contributions]),
        )

    def add_samples(self, start: int, stop: int, out: Tensor) -> None:
        """Add gₖ to `out` [m, *table]."""
        rows = out.view(-1, self.values_rd.shape[1])
        owned = (self.owner_r >= start) & (self.owner_r < stop)
        # the others are added as zeros: how many there are, a device need not be asked
        values = torch.where(owned[:, None], self.values_rd, 0).to(out.dtype)
        each = len(rows) // len(out)
        places = torch.where(owned, (self.owner_r - start) * each + self.tokens_r, 0)
        rows.index_add_(0, places, values)


@dataclass(eq=False)
class OneByOne:
    """gₖ from a function of k: a convolution of one sample, or a backward masked to one sample."""

    gradient: Callable[[int], Tensor]
    route: str

    def add_samples(self, start: int, stop: int, out: Tensor) -> None:
        """Add gₖ to `out`."""
        for k in range(start, stop):
            out[k - start] += self.gradient(k)


@dataclass(eq=False)
class Together:
    """gₖ of as many samples as one likes from one operation: `gradients(start, stop)`."""

    gradients: Callable[[int, int], Tensor]
    route: str

    def add_samples(self, start: int, stop: int, out: Tensor) -> None:
        """Add gₖ to `out`."""
        out += self.gradients(start, stop)


@dataclass(eq=False)
class Patches:
    """gₖ = Dₖ Cₖ, a convolution as a matrix product; Cₖ holds the patch that each place sees.

    D [n, groups, p, t]; `patches` [n, groups, *places, *kernel, q], a view, channels last, with
    t = places multiplied. Channels are last since rows of many neighbours are quickly gathered, and
    since matrix libraries like C [t, kernel · q] best.
    """

    still_ngpt: Tensor
    patches: Tensor
    route: str = "convolution"

    def columns(self, start: int, stop: int) -> Tensor:
        """Cₖ [m, groups, t, kernel · q]."""
        chosen = self.patches[start:stop]
        return chosen.reshape(*chosen.shape[:2], self.still_ngpt.shape[3], -1)

    def as_weights(self, products_mgpk: Tensor) -> Tensor:
        """Matrices like Dₖ Cₖ, seen as weights [m, groups · p, q, *kernel]."""
        places = (self.patches.ndim - 3) // 2
        kernel_q = self.patches.shape[2 + places :]
        return products_mgpk.reshape(len(products_mgpk), -1, *kernel_q).movedim(-1, 2)

    def add_samples(self, start: int, stop: int, out: Tensor) -> None:
        """Add gₖ to `out`."""
        out += self.as_weights(self.still_ngpt[start:stop] @ self.columns(start, stop))
