"""How |gₖ|ᵖ is summed over the samples: for each kind of term, and for mixtures of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retain.per_sample import devices
from retain.per_sample.layout import NOBODY, Owners
from retain.per_sample.products import add_patches, add_products
from retain.per_sample.sums import Sum
from retain.per_sample.terms import Factors, Lookups, OneByOne, Patches, Rows, Term, Together


def sum_terms(terms: Sequence[Term], samples: int, total: Sum) -> None:
    """Add Σₖ |Σ_uses gₖ|ᵖ, in the quickest way that the kinds of terms allow.

    The uses of one parameter meet before the power is taken.
    """
    first, *others = terms
    factors = [term for term in terms if isinstance(term, Factors)]
    lookups = [term for term in terms if isinstance(term, Lookups)]
    if len(lookups) == len(terms):
        sum_lookups(Lookups.together(lookups), total)
    elif factors and len(factors) + len(lookups) == len(terms):
        sum_factors(factors, lookups, samples, total)
    elif all(isinstance(term, Rows) for term in terms):
        sum_rows([t for t in terms if isinstance(t, Rows)], total)
    elif not others and isinstance(first, Patches):
        add_patches(first, total)
    elif not others and isinstance(first, Together):
        sum_together(first, samples, total)
    elif not others and isinstance(first, OneByOne):
        for k in range(samples):
            total.add(total.raised(first.gradient(k)))
    else:
        sum_mixture(terms, samples, total)


def sum_factors(
    factors: Sequence[Factors], lookups: Sequence[Lookups], samples: int, total: Sum
) -> None:
    """Linear maps, and look-ups of the same weight if there are any: GPT-2's head and table."""
    if any(isinstance(term.layout, Owners) for term in factors):
        _sum_ragged(factors, lookups, samples, total)
        return
    views = [term.positions for term in factors]
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


def sum_rows(terms: Sequence[Rows], total: Sum) -> None:
    """What is held for every sample already."""
    values = terms[0].values
    for term in terms[1:]:
        values = values + term.values
    total.add(total.raised(values).sum(0))


def sum_lookups(term: Lookups, total: Sum) -> None:
    """Look-ups without an n × vocabulary tensor: rows of one sample and token meet first."""
    owned = term.owner_r != NOBODY
    values = term.values_rd[owned].to(total.total.dtype)
    vocabulary = total.total.shape[0]
    # one number for each (sample, token): those that coincide are summed before the power
    keys = term.owner_r[owned] * vocabulary + term.tokens_r[owned]
    keys, place = torch.unique(keys, return_inverse=True)
    met = values.new_zeros(len(keys), values.shape[1]).index_add_(0, place, values)
    total.add_rows(keys % vocabulary, total.raised_(met))


def sum_together(term: Together, samples: int, total: Sum) -> None:
    """As many samples at a time as there is memory for, but at least one."""
    for start, stop in parts(samples, total.total):
        gradients = term.gradients(start, stop).to(total.total.dtype)
        total.add(total.over_samples_(gradients))


def sum_mixture(terms: Sequence[Term], samples: int, total: Sum) -> None:
    """Any mixture, in a buffer of the parameter's size: on a CPU of one sample after another."""
    held: Tensor | None = None
    for start, stop in parts(samples, total.total):
        if held is None:
            held = total.total.new_empty(stop - start, *total.total.shape)
        gradients = held[: stop - start].zero_()
        for term in terms:
            term.add_samples(start, stop, gradients)
        total.add(total.over_samples_(gradients))


def parts(samples: int, like: Tensor) -> list[tuple[int, int]]:
    """Where to begin and stop, so that gradients of so many samples fit into memory."""
    held = devices.at_once(like.device)
    each = 1 if held is None else max(1, held // max(1, like.numel()))
    return [(start, min(samples, start + each)) for start in range(0, samples, each)]
