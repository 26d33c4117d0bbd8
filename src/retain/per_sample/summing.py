"""How |gₖ|ᵖ is summed over the samples: for each kind of contribution, and for mixtures of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retain.per_sample import devices
from retain.per_sample.contributions import (
    Contribution,
    Factors,
    Grouped,
    Lookups,
    OneByOne,
    Patches,
    SampleGradients,
    Together,
)
from retain.per_sample.layout import NOBODY, Owners
from retain.per_sample.products import add_patches, add_products
from retain.per_sample.sums import Sum
from retain.per_sample.weighed import Weighed
from retain.pieces import together


def sum_contributions(contributions: Sequence[Contribution], samples: int, total: Sum) -> None:
    """Add Σₖ |Σ_uses gₖ|ᵖ, in the quickest way that the kinds of contributions allow.

    The uses of one parameter meet before the power is taken.
    """
    first, *others = contributions
    factors = [contribution for contribution in contributions if isinstance(contribution, Factors)]
    lookups = [contribution for contribution in contributions if isinstance(contribution, Lookups)]
    widths = {one.values_rd.shape[1] for one in lookups}
    widths.update(total.total.shape[1:].numel() for _ in factors[:1])
    if lookups and len(widths) > 1:  # of rows here, of elements there
        sum_mixture(contributions, samples, total)
    elif len(lookups) == len(contributions):
        sum_lookups(Lookups.together(lookups), total)
    elif factors and len(factors) + len(lookups) == len(contributions):
        sum_factors(factors, lookups, samples, total)
    elif all(isinstance(contribution, SampleGradients) for contribution in contributions):
        sum_rows([t for t in contributions if isinstance(t, SampleGradients)], total)
    elif not others and isinstance(first, Patches):
        add_patches(first, total)
    elif not others and isinstance(first, Weighed):
        sum_weighed(first, samples, total)
    elif not others and isinstance(first, Grouped):
        sum_grouped(first, total)
    elif not others and isinstance(first, Together):
        sum_together(first, samples, total)
    elif not others and isinstance(first, OneByOne):
        for k in range(samples):
            total.add_raised(first.gradient(k))
    else:
        sum_mixture(contributions, samples, total)


def sum_factors(
    factors: Sequence[Factors], lookups: Sequence[Lookups], samples: int, total: Sum
) -> None:
    """Linear maps, and look-ups of the same weight if there are any: GPT-2's head and table."""
    if any(isinstance(contribution.layout, Owners) for contribution in factors):
        _sum_ragged(factors, lookups, samples, total)
        return
    views = [contribution.positions for contribution in factors]
    # several uses of one weight are more positions
    left, right = (
        (torch.cat([view[side] for view in views], 1) if len(views) > 1 else views[0][side]).to(
            total.total.dtype
        )
        for side in (0, 1)
    )
    if left.shape[1] == 1 and not lookups:
        # One row per sample: gₖ = dₖ aₖᵀ, so Σₖ|gₖ|ᵖ = (|D|ᵖ)ᵀ(|A|ᵖ)
        total.add_product(total.raised(left[:, 0]), total.raised(right[:, 0]))
    else:
        met = Lookups.together(list(lookups)) if lookups else None
        add_products(left, right, total, met)


def sum_weighed(contribution: Weighed, samples: int, total: Sum) -> None:
    """Of a product of parameters: where nothing is summed over, |F g|ᵖ = |F|ᵖ |g|ᵖ."""
    if contribution.summed:
        contribution.add_to(total)
        return
    like, factors = total.total, contribution.factors
    alone = Sum(factors.shape, like.dtype, like.device, total.power)
    sum_factors([factors], [], samples, alone)
    weights = total.raised(contribution.weights)
    total.add(alone.result().view(weights.shape).mul_(weights).view(like.shape))


def _sum_ragged(
    factors: Sequence[Factors], lookups: Sequence[Lookups], samples: int, total: Sum
) -> None:
    """Samples with different numbers of rows, such as the tokens that an expert was given."""
    first = factors[0]
    if len(factors) == 1 and not lookups and isinstance(first.layout, Owners):
        owner = first.layout.owner.reshape(-1)
        owned = owner[owner != NOBODY]
        if len(owned) == len(owned.unique()):  # one row per sample at most
            rows = (owner != NOBODY).nonzero().flatten()
            left, right = first.left_rp[rows], first.right_rq[rows]
            total.add_product(total.raised(left), total.raised(right))
            return
    sum_mixture([*factors, *lookups], samples, total)


def sum_rows(contributions: Sequence[SampleGradients], total: Sum) -> None:
    """What is held for every sample already."""
    values = contributions[0].values
    for contribution in contributions[1:]:
        values = values + contribution.values
    total.add_samples(values)


def sum_lookups(contribution: Lookups, total: Sum) -> None:
    """Look-ups without an n × vocabulary tensor: rows of one sample and token meet first."""
    owned = contribution.owner_r != NOBODY
    values = contribution.values_rd[owned].to(total.total.dtype)
    vocabulary = total.total.numel() // values.shape[1]
    # one number for each (sample, token): those that coincide are summed before the power
    keys = contribution.owner_r[owned] * vocabulary + contribution.tokens_r[owned]
    keys, place = torch.unique(keys, return_inverse=True)
    met = values.new_zeros(len(keys), values.shape[1]).index_add_(0, place, values)
    total.add_rows(keys % vocabulary, total.raised_(met))


def sum_grouped(contribution: Grouped, total: Sum) -> None:
    """A product for each sample and group that meet, into the group's part of the sum."""
    groups = len(total.result())  # zeros, where a group has no rows
    sums = total.matrix(groups).view(total.total.shape)
    gradient = torch.empty_like(sums[0])
    for group, _, left, right in contribution.pieces:
        torch.mm(left.T.to(sums.dtype), right.to(sums.dtype), out=gradient)
        sums[group].add_(total.raised_(gradient))


def sum_together(contribution: Together, samples: int, total: Sum) -> None:
    """As many samples at a time as there is memory for, but at least one."""
    for start, stop in parts(samples, total.total):
        gradients = contribution.gradients(start, stop).to(total.total.dtype)
        total.add(total.over_samples_(gradients))


def sum_mixture(contributions: Sequence[Contribution], samples: int, total: Sum) -> None:
    """Any mixture, in a buffer of the parameter's size: on a CPU of one sample after another."""
    held: Tensor | None = None
    for start, stop in parts(samples, total.total):
        if held is None:
            held = total.total.new_empty(stop - start, *total.total.shape)
        gradients = held[: stop - start].zero_()
        for contribution in contributions:
            contribution.add_samples(start, stop, gradients)
        total.add(total.over_samples_(gradients))


def parts(samples: int, like: Tensor) -> list[tuple[int, int]]:
    """Where to begin and stop, so that gradients of so many samples fit into memory."""
    held = devices.room(like.device)
    each = 1 if held is None else together(samples, like.numel(), held)
    return [(start, min(samples, start + each)) for start in range(0, samples, each)]
