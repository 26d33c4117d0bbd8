"""Operations in which a parameter meets an activation element by element, with broadcasting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import Node

from retain.per_sample.layout import NOBODY, Layout, Owners
from retain.per_sample.terms import Rows


def rows(values: Tensor, layout: Layout, shape: torch.Size) -> Rows | None:
    """gₖ [n, *shape]: `values`, summed for each sample over what was broadcast from `shape`.

    None where the parameter itself has a size along the samples' dimension.
    """
    lead = values.ndim - len(shape)
    dim = layout.dim
    if lead < 0 or dim is None or (dim >= lead and shape[dim - lead] != 1):
        return None
    summed = [d for d in range(values.ndim) if d != dim and (d < lead or shape[d - lead] == 1)]
    if isinstance(layout, Owners):
        owner = layout.owner.reshape(-1)
        per_row = (values.sum(summed, keepdim=True) if summed else values).movedim(dim, 0)
        kept = owner != NOBODY
        sums = per_row.new_zeros(layout.samples, *per_row.shape[1:])
        sums.index_add_(0, owner[kept], per_row[kept])
        return Rows(sums.reshape(layout.samples, *shape))
    # dimensions: …, outer, n, inner, … ; those after `dim` have moved by two
    over = [d if d < dim else d + 2 for d in summed] + [dim, dim + 2]
    split = layout.split(values)
    sizes = [1 if d in over else split.shape[d] for d in range(split.ndim)]
    squeezed = [d for d in over if split.shape[d] != 1]
    sums = split.sum(squeezed, keepdim=True) if squeezed else split
    del sizes
    return Rows(sums.movedim(dim + 1, 0).reshape(layout.samples, *shape))


def add(node: Node, index: int, grad: Tensor, layout: Layout, shape: torch.Size) -> Rows | None:
    """y = a + α b."""
    alpha = node._saved_alpha if index == 1 else 1  # type: ignore[attr-defined]
    return rows(grad if alpha == 1 else grad * alpha, layout, shape)


def sub(node: Node, index: int, grad: Tensor, layout: Layout, shape: torch.Size) -> Rows | None:
    """y = a − α b."""
    return rows(grad * -node._saved_alpha if index == 1 else grad, layout, shape)  # type: ignore[attr-defined]


def mul(node: Node, index: int, grad: Tensor, layout: Layout, shape: torch.Size) -> Rows | None:
    """y = a b, so that ∂/∂a = D b."""
    other = node._saved_other if index == 0 else node._saved_self  # type: ignore[attr-defined]
    return rows(grad * other, layout, shape)


def div(node: Node, index: int, grad: Tensor, layout: Layout, shape: torch.Size) -> Rows | None:
    """y = a / b, so that ∂/∂a = D / b and ∂/∂b = −D a / b²."""
    other = node._saved_other  # type: ignore[attr-defined]
    if index == 0:
        return rows(grad / other, layout, shape)
    return rows(-grad * node._saved_self / other.square(), layout, shape)  # type: ignore[attr-defined]


def expand(node: Node, index: int, grad: Tensor, layout: Layout, shape: torch.Size) -> Rows | None:
    """y = a, repeated: a class token, one for every sample."""
    return rows(grad, layout, shape)


def prelu(node: Node, index: int, grad: Tensor, layout: Layout, shape: torch.Size) -> Rows | None:
    """y = x where x > 0, else w x; so that ∂/∂w = D x where x ≤ 0."""
    if index != 1:
        return None
    inputs = node._saved_self  # type: ignore[attr-defined]
    return rows(grad * inputs.clamp(max=0), layout, shape)
