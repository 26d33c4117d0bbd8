"""Operations in which a parameter meets an activation element by element, with broadcasting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retain.per_sample.contributions import SampleGradients
from retain.per_sample.layout import NOBODY, Blocks, Layout, Owners


def rows(values: Tensor, layout: Layout, shape: torch.Size) -> SampleGradients | None:
    """gₖ [n, *shape]: `values`, summed for each sample over what was broadcast from `shape`.

    None where the parameter itself has a size along the samples' dimension, and these are blocks.
    """
    lead = values.ndim - len(shape)
    dim = layout.dim
    if isinstance(layout, Owners) and (dim is None or (dim >= lead and shape[dim - lead] != 1)):
        return _element_by_element(values, layout, shape)
    if lead < 0 or dim is None or (dim >= lead and shape[dim - lead] != 1):
        return None
    summed = [d for d in range(values.ndim) if d != dim and (d < lead or shape[d - lead] == 1)]
    if isinstance(layout, Owners):
        owner = layout.owner.reshape(-1)
        per_row = (values.sum(summed, keepdim=True) if summed else values).movedim(dim, 0)
        kept = owner != NOBODY
        sums = per_row.new_zeros(layout.samples, *per_row.shape[1:])
        sums.index_add_(0, owner[kept], per_row[kept])
        return SampleGradients(sums.reshape(layout.samples, *shape))
    # dimensions: …, outer, n, inner, … ; those after `dim` have moved by two
    over = [d if d < dim else d + 2 for d in summed] + [dim, dim + 2]
    split = layout.split(values)
    over = [d for d in over if split.shape[d] != 1]
    sums = split.sum(over, keepdim=True) if over else split
    return SampleGradients(sums.movedim(dim + 1, 0).reshape(layout.samples, *shape))


def _element_by_element(
    values: Tensor, layout: Owners, shape: torch.Size
) -> SampleGradients | None:
    """The same where the owner changes from element to element, or along the parameter itself."""
    n, numbers = layout.samples, shape.numel()
    if values.ndim < len(shape) or n * numbers > 2 * values.numel():
        return None  # would be more than was computed for all samples
    owner = layout.owner.expand(values.shape)
    place = torch.arange(numbers, device=values.device).view(shape).expand(values.shape)
    known = owner != NOBODY
    sums = values.new_zeros(n * numbers)
    sums.index_add_(0, (owner * numbers + place)[known], values[known])
    return SampleGradients(sums.view(n, *shape))


def add(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = a + α b."""
    alpha = node._saved_alpha if index == 1 else 1
    return rows(grad if alpha == 1 else grad * alpha, layout, shape)


def sub(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = a − α b."""
    return rows(grad * -node._saved_alpha if index == 1 else grad, layout, shape)


def mul(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = a b, so that ∂/∂a = D b."""
    other = node._saved_other if index == 0 else node._saved_self
    return rows(grad * other, layout, shape)


def div(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = a / b, so that ∂/∂a = D / b and ∂/∂b = −D a / b²."""
    other = node._saved_other
    if index == 0:
        return rows(grad / other, layout, shape)
    return rows(-grad * node._saved_self / other.square(), layout, shape)


def addcmul(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = a + α b c, so that ∂/∂a = D, ∂/∂b = α D c and ∂/∂c = α D b."""
    if index == 0:
        return rows(grad, layout, shape)
    other = node._saved_tensor2 if index == 1 else node._saved_tensor1
    return rows(grad * other * node._saved_value, layout, shape)


def expand(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = a, repeated: a class token, one for every sample."""
    return rows(grad, layout, shape)


def repeat(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = a, tiled: a table of relative positions, for every sample and head."""
    if not isinstance(layout, Blocks):
        return None
    lead = grad.ndim - len(shape)
    own = shape[layout.dim - lead] if layout.dim >= lead else 1
    if layout.inner % own:
        return None
    # every dimension as (times, size of a), that of the samples as (outer, n, times, size of a)
    sizes: list[int] = []
    over: list[int] = []
    for d, size in enumerate(grad.shape):
        of_a = shape[d - lead] if d >= lead else 1
        if d == layout.dim:
            over += [len(sizes), len(sizes) + 2]
            sizes += [layout.outer, layout.samples, layout.inner // own, of_a]
            at = len(sizes) - 3
        else:
            over.append(len(sizes))
            sizes += [size // of_a, of_a]
    summed = grad.reshape(sizes).sum(over, keepdim=True).movedim(at, 0)
    return SampleGradients(summed.reshape(layout.samples, *shape))


def prelu(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = x where x > 0, else w x; so that ∂/∂w = D x where x ≤ 0."""
    if index != 1:
        return None
    inputs = node._saved_self
    return rows(grad * inputs.clamp(max=0), layout, shape)
