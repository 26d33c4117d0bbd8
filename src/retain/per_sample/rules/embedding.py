"""Table look-ups: of rows of a table, or of its elements, where each is a row of one number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retain.per_sample.contributions import Lookups
from retain.per_sample.layout import NOBODY, Blocks, Layout

SUM, MEAN = 0, 1  # what an embedding bag does with its rows; else it takes the largest


def embedding(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Lookups | None:
    """gₖ has the gradients of sample k's tokens added up in the tokens' rows."""
    tokens = node._saved_indices
    owner = None if node._saved_scale_grad_by_freq else _owner(layout, tokens.shape, grad.device)
    if owner is None:
        return None
    return _looked_up(tokens, grad, _trained(owner, tokens, node._saved_padding_idx, shape))


def embedding_bag(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Lookups | None:
    """Y_b = Σ or mean of the rows of bag b, each perhaps with a weight; or the largest of them."""
    owner = _owner(layout, grad.shape[:1], grad.device)
    if index != 0 or owner is None or node._saved_scale_grad_by_freq:
        return None
    tokens, mode = node._saved_indices, node._saved_mode
    filled = node._saved_result2  # how many rows of each bag count, unless they are just summed
    if mode not in (SUM, MEAN):
        largest = node._saved_result3  # [bags, d]: the row from which each element came
        places = largest * shape[1] + torch.arange(shape[1], device=grad.device)
        owner = torch.where(filled[:, None] > 0, owner[:, None], NOBODY).expand(places.shape)
        return _looked_up(places, grad[..., None], owner)
    number = torch.arange(len(tokens), device=grad.device)
    bag = torch.searchsorted(node._saved_offsets, number.to(node._saved_offsets), right=True) - 1
    values = grad[bag]
    if mode == MEAN:
        values = values / filled[bag].clamp_min(1)[:, None]
    if node._saved_per_sample_weights is not None:
        values = values * node._saved_per_sample_weights[:, None]
    return _looked_up(tokens, values, _trained(owner[bag], tokens, node._saved_padding_idx, shape))


def indexing(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Lookups | None:
    """Y = A[i], or A[i, j, …]: indices of the first dimensions of A."""
    given = node._saved_indices
    if not given or any(i is None or i.dtype not in (torch.int64, torch.int32) for i in given):
        return None
    rows = torch.zeros((), dtype=torch.int64, device=grad.device)
    for size, i in zip(shape, given):
        rows = rows * size + torch.where(i < 0, i + size, i)
    owner = _owner(layout, rows.shape, grad.device)
    return None if owner is None else _looked_up(rows, grad, owner)


def index_select(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Lookups | None:
    """Y = A[i], for some rows of A."""
    rows = node._saved_index
    owner = None if node._saved_dim or not shape else _owner(layout, rows.shape, grad.device)
    return None if owner is None else _looked_up(rows, grad, owner)


def _looked_up(rows: Tensor, values: Tensor, owner: Tensor) -> Lookups:
    """`values` [*rows.shape, …] were looked up in these rows, for these samples."""
    return Lookups(rows.reshape(-1), values.reshape(rows.numel(), -1), owner.reshape(-1))


def _owner(layout: Layout, places: torch.Size, device: torch.device) -> Tensor | None:
    """The sample for which each place is looked up; None where a row is for several."""
    if layout.dim is None or layout.dim >= len(places):
        return None
    sizes = [-1 if d == layout.dim else 1 for d in range(len(places))]
    if isinstance(layout, Blocks):
        number = torch.arange(places[layout.dim], device=device)
        owner = number // layout.inner % layout.samples
    else:
        owner = layout.owner
    return owner.reshape(sizes).expand(places)


def _trained(owner: Tensor, tokens: Tensor, padding: int, shape: torch.Size) -> Tensor:
    """The same, without the row for padding, which is never trained."""
    if 0 <= padding < shape[0]:  # −1, for none, may come as an unsigned number
        return torch.where(tokens == padding, NOBODY, owner)
    return owner
