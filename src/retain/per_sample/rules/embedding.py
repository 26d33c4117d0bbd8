"""Table look-ups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retain.per_sample.contributions import Lookups
from retain.per_sample.layout import NOBODY, Blocks, Layout


def embedding(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Lookups | None:
    """gₖ has the gradients of sample k's tokens added up in the tokens' rows."""
    if node._saved_scale_grad_by_freq or layout.dim == grad.ndim - 1:
        return None
    tokens = node._saved_indices
    if isinstance(layout, Blocks):
        number = torch.arange(tokens.shape[layout.dim], device=tokens.device)
        sizes = [-1 if d == layout.dim else 1 for d in range(tokens.ndim)]
        owner = (number // layout.inner % layout.samples).reshape(sizes)
    elif layout.dim is None:
        return None
    else:
        owner = layout.owner.squeeze(-1)
    owner = owner.expand(tokens.shape)
    padding = node._saved_padding_idx
    if 0 <= padding < shape[0]:  # −1, for none, may come as an unsigned number
        owner = torch.where(tokens == padding, NOBODY, owner)  # it is never trained
    return Lookups(tokens.reshape(-1), grad.reshape(-1, grad.shape[-1]), owner.reshape(-1))
