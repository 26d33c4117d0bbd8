"""Matrix products. n samples, r rows of a batch, q inputs, p outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retain.per_sample.contributions import Contribution, Factors, Grouped, OneByOne
from retain.per_sample.layout import NOBODY, Blocks, Layout, Owners
from retain.per_sample.rules.elementwise import rows


def mm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Contribution | None:
    """Y = A B.   ∂/∂B = Aᵀ D, summed over the rows of D; ∂/∂A = D Bᵀ, summed over its columns."""
    if index == 1:
        return product(node._saved_self, grad, layout)
    return columns(grad, node._saved_mat2, layout)


def addmm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Contribution | None:
    """Y = β C + α A B."""
    if index == 0:
        beta = node._saved_beta
        return rows(grad if beta == 1 else grad * beta, layout, shape)
    alpha = node._saved_alpha
    scaled = grad if alpha == 1 else grad * alpha
    if index == 2:
        return product(node._saved_mat1, scaled, layout)
    return columns(scaled, node._saved_mat2, layout)


def product(left_rq: Tensor, grad_rp: Tensor, layout: Layout) -> Factors | None:
    """gₖ = Aₖᵀ Dₖ [q, p], with the samples along the rows."""
    return Factors(left_rq, grad_rp, layout) if layout.dim == 0 else None


def columns(grad_pr: Tensor, right_qr: Tensor, layout: Layout) -> Factors | None:
    """gₖ = Dₖ Bₖᵀ [p, q], with the samples along the columns (W X, the batch in columns)."""
    return Factors(grad_pr.T, right_qr.T, layout) if layout.dim == 1 else None


def bmm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Contribution | None:
    """Y_b = A_b B_b, a weight for every b (experts, or a single b); samples inside each."""
    return _batched(node._saved_self, node._saved_mat2, index, grad, layout)


def baddbmm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Contribution | None:
    """Y_b = β C_b + α A_b B_b."""
    if index == 0:
        return rows(grad * node._saved_beta, layout, shape)
    scaled = grad * node._saved_alpha
    return _batched(node._saved_batch1, node._saved_batch2, index - 1, scaled, layout)


def complex_product(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> OneByOne | None:
    """Y = A B of complex numbers, perhaps for every b: ∂/∂B = Aᴴ D and ∂/∂A = D Bᴴ."""
    if layout.dim is None:
        return None
    a, b = (None if one is None else one.conj() for one in (node._saved_self, node._saved_mat2))
    if grad.ndim == 2:
        a, b = (None if one is None else one[None] for one in (a, b))
        layout = replace(layout, dim=layout.dim + 1)
    sides = _sides(a, b, index, grad.view(-1, *grad.shape[-2:]), layout)
    if sides is None:
        return None
    each = _each(*sides, layout)
    return OneByOne(lambda sample: each.gradient(sample).view(shape), each.route)


def grouped_mm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Grouped | None:
    """Y_r = A_r B_g, a weight for each group of rows: the tokens of an expert."""
    left_rq, ends = node._saved_self, node._saved_offs
    if index != 1 or layout.dim != 0 or ends is None or left_rq.ndim != 2 or len(shape) != 3:
        return None
    number = torch.arange(len(grad), device=grad.device)
    group = torch.searchsorted(ends, number.to(ends), right=True)
    if isinstance(layout, Blocks):
        owner = number // layout.inner % layout.samples
    else:
        owner = layout.owner.reshape(-1)
    owner = torch.where(group < shape[0], owner, NOBODY)  # rows behind the last group are of none
    return Grouped(left_rq, grad, group, owner)


def mv(node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size) -> Factors | None:
    """Y = A x, one number for each row of A: gₖ = Σ_rows d a for x."""
    if index != 1 or layout.dim != 0:
        return None
    return Factors(grad[:, None], node._saved_self, layout)


def _batched(
    a: Tensor | None, b: Tensor | None, index: int, grad: Tensor, layout: Layout
) -> Contribution | None:
    sides = _sides(a, b, index, grad, layout)
    if sides is None:
        return None
    left, right = sides
    if len(left) == 1:
        return Factors(left[0], right[0], layout)
    return _each(left, right, layout)


def _sides(
    a: Tensor | None, b: Tensor | None, index: int, grad: Tensor, layout: Layout
) -> tuple[Tensor, Tensor] | None:
    """L and R of gₖ = Lₖᵀ Rₖ, for every b."""
    if index == 1 and layout.dim == 1 and a is not None:
        return a, grad
    if index == 0 and layout.dim == 2 and b is not None:
        return grad.mT, b.mT
    return None


def _each(left: Tensor, right: Tensor, layout: Layout) -> OneByOne:
    def gradient(sample: int) -> Tensor:
        return torch.bmm(_of(left, layout, sample).mT, _of(right, layout, sample))

    return OneByOne(gradient, "linear")


def _of(tensor_brq: Tensor, layout: Layout, sample: int) -> Tensor:
    if isinstance(layout, Owners):
        return tensor_brq[:, layout.owner.reshape(-1) == sample]
    return layout.split(tensor_brq, 1)[:, :, sample].flatten(1, 2)


def shared_bmm(node: Any, index: int, grad: Tensor, layout: Layout) -> Factors | None:
    """Y_b = A_b B with one B for all b, or A B_b with one A: the rows of all b are positions."""
    if not isinstance(layout, Blocks) or layout.dim != 0:
        return None
    if index == 1:
        left, right = node._saved_self, grad
    else:
        left, right = grad.mT, node._saved_mat2.mT
    positions = left.shape[1]
    flat = Blocks(0, layout.outer, layout.samples, layout.inner * positions)
    return Factors(left.flatten(0, 1), right.flatten(0, 1), flat)
