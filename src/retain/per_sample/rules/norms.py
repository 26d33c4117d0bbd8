"""Normalisations: the scale meets the normalised input x̂, the shift nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retain.per_sample.contributions import Rows
from retain.per_sample.layout import Layout
from retain.per_sample.rules.elementwise import rows

WEIGHT = 1


def layer_norm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Rows | None:
    """Y = x̂ w + b over the last dimensions."""
    if index != WEIGHT:
        return rows(grad, layout, shape)
    mean, rstd = node._saved_result1, node._saved_result2
    return rows(grad * ((node._saved_input - mean) * rstd), layout, shape)


def batch_norm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Rows | None:
    """Y = x̂ w + b per channel, with running statistics (in train mode samples interact)."""
    if layout.dim == 1 or node._saved_training:
        return None
    if index != WEIGHT:
        return _per_channel(grad, layout, shape)
    # Every (sample, channel) as a channel of one large sample: one fused pass gives Σ D x̂ for each.
    n, channels = grad.shape[:2]
    mean, var = node._saved_running_mean.repeat(n), node._saved_running_var.repeat(n)
    d, x = (t.contiguous().view(1, n * channels, -1) for t in (grad, node._saved_input))
    unit = torch.ones_like(mean)
    found = torch.ops.aten.native_batch_norm_backward(
        d, x, unit, mean, var, None, None, False, node._saved_eps, [False, True, False]
    )
    return rows(found[1].view(n, channels), layout, shape)


def group_norm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Rows | None:
    """Y = x̂ w + b per channel, normalised over groups of channels inside a sample."""
    if layout.dim != 0:
        return None
    if index == WEIGHT:
        n, groups = grad.shape[0], node._saved_group
        mean, rstd = node._saved_result1, node._saved_result2
        inputs = node._saved_input.reshape(n, groups, -1)
        normalised = (inputs - mean.view(n, groups, 1)) * rstd.view(n, groups, 1)
        grad = grad * normalised.view(grad.shape)
    return _per_channel(grad, layout, shape)


def _per_channel(grad: Tensor, layout: Layout, shape: torch.Size) -> Rows | None:
    if layout.dim is not None and layout.dim > 1:
        return None
    return rows(grad.movedim(1, -1), layout, shape)
