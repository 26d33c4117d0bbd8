"""Normalisations: the scale meets the normalised input x̂, the shift nothing."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from retain.per_sample.contributions import SampleGradients
from retain.per_sample.layout import Layout
from retain.per_sample.nodes import by_itself
from retain.per_sample.rules.elementwise import rows

WEIGHT, BIAS = 1, 2
BOTH = "retain: of weight and bias"  # under this name a node keeps what one pass gave for them

_backward = torch.ops.aten.native_batch_norm_backward


def layer_norm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = x̂ w + b over the last dimensions."""
    if index != WEIGHT:
        return rows(grad, layout, shape)
    mean, rstd = node._saved_result1, node._saved_result2
    return rows(grad * ((node._saved_input - mean) * rstd), layout, shape)


def batch_norm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = x̂ w + b per channel, with running statistics (in train mode samples interact)."""
    if layout.dim != 0 or node._saved_training:
        return None
    # One pass gives Σ D x̂ and Σ D: what is asked for second, of the same D, is there already.
    made_of, sums = node.metadata.get(BOTH, (None, {}))
    if made_of is None or made_of() is not grad:
        sums = dict(zip((WEIGHT, BIAS), _over_pixels(node, grad)))
        node.metadata[BOTH] = weakref.ref(grad), sums
    return rows(sums[index], layout, shape)


def _over_pixels(node: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Σ D x̂ and Σ D over the pixels of every row, [rows, channels] each."""
    inputs, mean, var = node._saved_input, node._saved_running_mean, node._saved_running_var
    given = (None, None, False, node._saved_eps, [False, True, True])
    rows, channels = grad.shape[:2]
    if grad.is_contiguous() and inputs.is_contiguous():
        # every (row, channel) as a channel of one large row
        d, x = (t.view(1, rows * channels, -1) for t in (grad, inputs))
        unit, mean, var = torch.ones_like(mean).repeat(rows), mean.repeat(rows), var.repeat(rows)
        _, scale, shift = _backward(d, x, unit, mean, var, *given)
        return scale.view(rows, channels), shift.view(rows, channels)
    unit = torch.ones_like(mean)
    each = [
        _backward(by_itself(d), x, unit, mean, var, *given)[1:]
        for d, x in zip(grad.split(1), inputs.split(1))
    ]
    scales, shifts = zip(*each)
    return torch.stack(scales), torch.stack(shifts)


def group_norm(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> SampleGradients | None:
    """Y = x̂ w + b per channel, normalised over groups of channels inside a sample."""
    if layout.dim != 0:
        return None
    if index == WEIGHT:
        n, groups = grad.shape[0], node._saved_group
        mean, rstd = node._saved_result1, node._saved_result2
        inputs = node._saved_input.reshape(n, groups, -1)
        normalised = (inputs - mean.view(n, groups, 1)) * rstd.view(n, groups, 1)
        grad = grad * normalised.view(grad.shape)
    return rows(grad.movedim(1, -1), layout, shape)
