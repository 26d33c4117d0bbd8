"""Table look-ups."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import Node

from retain.per_sample.layout import NOBODY, Blocks, Layout
from retain.per_sample.terms import Lookups


def embedding(
    node: Node, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Lookups | None:
    """gₖ has the gradients of sample k's tokens added up in the tokens' rows."""
    if node._saved_scale_grad_by_freq or layout.dim == grad.ndim - 1:  # type: ignore[attr-defined]
        return None
    tokens = node._saved_indices  # type: ignore[attr-defined]
    if isinstance(layout, Blocks):
        number = torch.arange(tokens.shape[layout.dim], device=tokens.device)
        sizes = [-1 if d == layout.dim else 1 for d in range(tokens.ndim)]
        owner = (number // layout.inner % layout.samples).reshape(sizes)
    elif layout.dim is None:
        return None
    else:
        owner = layout.owner.squeeze(-1)
    owner = owner.expand(tokens.shape)
    # the padding token is never trained; −1 (none) may come as an unsigned number
    owner = torch.where(tokens == node._saved_padding_idx, NOBODY, owner) if (  # type: ignore[attr-defined]
        0 <= node._saved_padding_idx < shape[0]  # type: ignore[attr-defined]
    ) else owner
    return Lookups(tokens.reshape(-1), grad.reshape(-1, grad.shape[-1]), owner.reshape(-1))
