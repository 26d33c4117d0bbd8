"""The forms in which the gradients of a batch of samples can be held without n × P memory.

Shapes: n samples, t positions inside a sample (tokens, pixels, steps), r = all rows of a batch,
p × q the weight. Every term can add the gradient of one sample to a buffer; each kind also knows
how to sum |gₖ|ᵖ over the samples when it is the only thing that reaches its parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from retain.per_sample import devices
from retain.per_sample.layout import NOBODY, Blocks, Layout, Owners
from retain.per_sample.products import PowersOfProducts
from retain.per_sample.sums import BLOCK, CACHED, Sum


class Term(Protocol):
    """What one use of a parameter contributes to the gradients of the samples."""

    route: str

    def add_sample(self, sample: int, out: Tensor) -> None:
        """Add the gradient of one sample to `out`, which has the shape of the gradient."""
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

    def pieces(self, sample: int) -> tuple[Tensor, Tensor]:
        """Lₖ [t, p] and Rₖ [t, q] of one sample."""
        layout = self.layout
        if isinstance(layout, Owners):
            chosen = self._rows[sample]
            return self.left_rp[chosen], self.right_rq[chosen]
        left, right = (
            rows[sample] if layout is None else layout.split(rows, 0)[:, sample].flatten(0, 1)
            for rows in (self.left_rp, self.right_rq)
        )
        return left, right

    def positions_first(self) -> tuple[Tensor, Tensor]:
        """L [n, t, p] and R [n, t, q]; a view wherever samples are contiguous."""
        if self.layout is None:
            return self.left_rp, self.right_rq
        assert isinstance(self.layout, Blocks)
        left, right = (
            self.layout.split(rows, 0).movedim(1, 0).flatten(1, 2)
            for rows in (self.left_rp, self.right_rq)
        )
        return left, right

    def add_sample(self, sample: int, out: Tensor) -> None:
        """Add Lₖᵀ Rₖ to `out` [p, q]."""
        left, right = self.pieces(sample)
        if len(left):
            out.view(self.shape).addmm_(left.T.to(out.dtype), right.to(out.dtype))


def sum_factors(terms: Sequence[Factors], samples: int, total: Sum) -> None:
    """Add Σₖ |Σ_uses Lₖᵀ Rₖ|ᵖ: the uses of one weight meet before the power is taken."""
    if any(isinstance(term.layout, Owners) for term in terms):
        _sum_ragged(terms, samples, total)
        return
    views = [term.positions_first() for term in terms]
    left = torch.cat([v[0] for v in views], 1) if len(views) > 1 else views[0][0]
    right = torch.cat([v[1] for v in views], 1) if len(views) > 1 else views[0][1]
    left, right = left.to(total.total.dtype), right.to(total.total.dtype)
    if left.shape[1] == 1:
        # One row per sample: gₖ = dₖ aₖᵀ, so Σₖ|gₖ|ᵖ = (|D|ᵖ)ᵀ(|A|ᵖ)
        total.add_product(total.raised(left[:, 0]), total.raised(right[:, 0]))
    elif (held := devices.at_once(left.device)) is not None:
        _sum_together(left, right, total, held)
    elif left.shape[2] * right.shape[2] * 2 <= CACHED:
        _sum_small(left, right, total)
    else:
        _sum_in_blocks(left, right, total)


def _sum_together(left_ntp: Tensor, right_ntq: Tensor, total: Sum, held: int) -> None:
    """As many samples at a time as make `held` numbers; of a larger weight fewer rows."""
    p, q = left_ntp.shape[2], right_ntq.shape[2]
    rows = max(1, min(p, held // q))
    chunk = max(1, held // (rows * q))
    for part, block in _blocks(total, p, rows):
        for left, right in zip(left_ntp.split(chunk), right_ntq.split(chunk)):
            # gₖ = Lₖᵀ Rₖ
            block.add_(total.over_samples(torch.bmm(left[..., part].mT, right)))


def _sum_small(left_ntp: Tensor, right_ntq: Tensor, total: Sum) -> None:
    """Many samples at a time, as many as stay in the cache."""
    n, p, q = len(left_ntp), left_ntp.shape[2], right_ntq.shape[2]
    chunk = max(1, min(n, BLOCK // (p * q)))
    held = left_ntp.new_empty(chunk, p, q)
    for left, right in zip(left_ntp.split(chunk), right_ntq.split(chunk)):
        gradients = torch.bmm(left.mT, right, out=held[: len(left)])
        total.add(total.raised_(gradients).sum(0).view(total.total.shape))


def _sum_in_blocks(left_ntp: Tensor, right_ntq: Tensor, total: Sum) -> None:
    """One sample at a time, and of a large weight only as many rows as stay in the cache."""
    n, p, q = len(left_ntp), left_ntp.shape[2], right_ntq.shape[2]
    for part, block in _blocks(total, p, max(1, min(p, BLOCK // q))):
        products = PowersOfProducts(block, total.power)
        for k in range(n):
            # gₖ = Lₖᵀ Rₖ
            products.add(left_ntp[k, :, part], right_ntq[k])


def _blocks(total: Sum, p: int, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """The sum as a matrix of p rows, so many of them at a time, each block ready to be added to."""
    fresh, matrix = total.empty, total.matrix(p)
    for start in range(0, p, rows):
        part = slice(start, start + rows)
        if fresh:
            matrix[part].zero_()
        yield part, matrix[part]
    total.empty = False


def _sum_ragged(terms: Sequence[Factors], samples: int, total: Sum) -> None:
    """Samples with different numbers of rows, such as the tokens that an expert was given."""
    if len(terms) == 1 and isinstance(terms[0].layout, Owners):
        owner = terms[0].layout.owner.reshape(-1)
        owned = owner[owner != NOBODY]
        if len(owned) == len(owned.unique()):  # one row per sample at most
            rows = (owner != NOBODY).nonzero().flatten()
            left, right = terms[0].left_rp[rows], terms[0].right_rq[rows]
            total.add_product(total.raised(left), total.raised(right))
            return
    sum_one_by_one(terms, samples, total)


def sum_one_by_one(terms: Sequence[Term], samples: int, total: Sum) -> None:
    """Add Σₖ |Σ_uses gₖ|ᵖ for any mixture of terms, in one buffer of the parameter's size."""
    buffer = torch.empty_like(total.total)
    for k in range(samples):
        buffer.zero_()
        for term in terms:
            term.add_sample(k, buffer)
        total.add(total.raised_(buffer))


@dataclass(eq=False)
class Rows:
    """gₖ itself, [n, *shape]: small, since it is a sum over part of an activation's gradient."""

    values: Tensor
    route: str = "elementwise"

    def add_sample(self, sample: int, out: Tensor) -> None:
        """Add gₖ to `out`."""
        out += self.values[sample]


def sum_rows(terms: Sequence[Rows], total: Sum) -> None:
    """Add Σₖ |Σ_uses gₖ|ᵖ."""
    values = terms[0].values
    for term in terms[1:]:
        values = values + term.values
    total.add(total.raised(values).sum(0))


@dataclass(eq=False)
class Lookups:
    """gₖ has the rows of `values` [r, d] added at `tokens` [r]: an embedding's gradient."""

    tokens_r: Tensor
    values_rd: Tensor
    owner_r: Tensor
    route: str = "embedding"

    @cached_property
    def _sorted(self) -> list[tuple[Tensor, Tensor]]:
        order = self.owner_r.argsort(stable=True)
        samples = int(self.owner_r.max()) + 1
        counts = torch.bincount(self.owner_r + 1, minlength=samples + 1).tolist()
        tokens, values = self.tokens_r[order].split(counts), self.values_rd[order].split(counts)
        return list(zip(tokens, values))[1:]  # the first are nobody's

    def add_sample(self, sample: int, out: Tensor) -> None:
        """Add gₖ to `out` [vocabulary, d]."""
        if sample < len(self._sorted):
            tokens, values = self._sorted[sample]
            out.index_add_(0, tokens, values.to(out.dtype))


def sum_lookups(terms: Sequence[Lookups], total: Sum) -> None:
    """Add Σₖ |gₖ|ᵖ without an n × vocabulary tensor: rows of one sample and token meet first."""
    owner = torch.cat([term.owner_r for term in terms])
    owned = owner != NOBODY
    tokens = torch.cat([term.tokens_r for term in terms])[owned]
    values = torch.cat([term.values_rd for term in terms])[owned].to(total.total.dtype)
    vocabulary = total.total.shape[0]
    # one number for each (sample, token): those that coincide are summed before the power
    keys, place = torch.unique(owner[owned] * vocabulary + tokens, return_inverse=True)
    met = values.new_zeros(len(keys), values.shape[1]).index_add_(0, place, values)
    total.add_rows(keys % vocabulary, total.raised_(met))


@dataclass(eq=False)
class OneByOne:
    """gₖ from a function of k: a convolution of one sample, or a backward masked to one sample."""

    gradient: Callable[[int], Tensor]
    route: str

    def add_sample(self, sample: int, out: Tensor) -> None:
        """Add gₖ to `out`."""
        out += self.gradient(sample)


@dataclass(eq=False)
class Together:
    """gₖ of as many samples as one likes from one operation: `gradients(start, stop)`."""

    gradients: Callable[[int, int], Tensor]
    route: str

    def add_sample(self, sample: int, out: Tensor) -> None:
        """Add gₖ to `out`."""
        out += self.gradients(sample, sample + 1)[0]


def sum_together(term: Together, samples: int, total: Sum) -> None:
    """Add Σₖ |gₖ|ᵖ, of as many samples at a time as there is memory for, but at least of one."""
    chunk = max(1, (devices.at_once(total.total.device) or 0) // total.total.numel())
    for start in range(0, samples, chunk):
        stop = min(samples, start + chunk)
        total.add(total.over_samples(term.gradients(start, stop)))


def sum_over_samples(term: OneByOne, samples: int, total: Sum) -> None:
    """Add Σₖ |gₖ|ᵖ."""
    for k in range(samples):
        total.add(total.raised(term.gradient(k)))


@dataclass(eq=False)
class Patches:
    """gₖ = Dₖ Cₖ, a convolution as a matrix product; Cₖ holds the patch that each pixel sees.

    D [n, p, t]; `patches` [n, height, width, *kernel, q], a view of the input, channels last, with
    t = height · width. Channels are last since rows of many neighbours are quickly gathered, and
    since matrix libraries like C [t, kernel · q] best. Of the patches, one sample's exist at once.
    """

    grad_npt: Tensor
    patches: Tensor
    route: str = "convolution"

    def columns(self, sample: int) -> Tensor:
        """Cₖ [t, kernel · q]."""
        return self.patches[sample].reshape(self.grad_npt.shape[2], -1)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """A matrix like Dₖ Cₖ, seen as the weight [p, q, *kernel]."""
        return matrix.view(-1, *self.patches.shape[3:]).movedim(-1, 1)

    def add_sample(self, sample: int, out: Tensor) -> None:
        """Add gₖ to `out`."""
        out += self.as_weight(self.grad_npt[sample] @ self.columns(sample))


def sum_patches(term: Patches, total: Sum) -> None:
    """Add Σₖ |gₖ|ᵖ."""
    n, p, t = term.grad_npt.shape
    powers = total.total.new_zeros(p, total.total[0].numel())
    held = devices.at_once(powers.device)
    if held is None:
        products = PowersOfProducts(powers, total.power)
        for k in range(n):
            products.add(term.grad_npt[k].T, term.columns(k))
    else:
        chunk = max(1, held // (max(p, t) * powers.shape[1]))
        for grad, patches in zip(term.grad_npt.split(chunk), term.patches.split(chunk)):
            columns = patches.reshape(len(grad), t, -1)
            powers += total.over_samples(torch.bmm(grad, columns))
    total.add(term.as_weight(powers))


def sum_terms(terms: Sequence[Term], samples: int, total: Sum) -> None:
    """Add Σₖ |Σ_uses gₖ|ᵖ, in the quickest way that the kinds of terms allow."""
    if all(isinstance(term, Factors) for term in terms):
        sum_factors([t for t in terms if isinstance(t, Factors)], samples, total)
    elif all(isinstance(term, Rows) for term in terms):
        sum_rows([t for t in terms if isinstance(t, Rows)], total)
    elif all(isinstance(term, Lookups) for term in terms):
        sum_lookups([t for t in terms if isinstance(t, Lookups)], total)
    elif len(terms) == 1 and isinstance(terms[0], Patches):
        sum_patches(terms[0], total)
    elif len(terms) == 1 and isinstance(terms[0], Together):
        sum_together(terms[0], samples, total)
    elif len(terms) == 1 and isinstance(terms[0], OneByOne):
        sum_over_samples(terms[0], samples, total)
    else:
        sum_one_by_one(terms, samples, total)
