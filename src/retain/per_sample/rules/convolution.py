"""Convolutions in any number of dimensions, transposed or not: one sample at a time."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from retain.per_sample.layout import Blocks, Layout
from retain.per_sample.rules.elementwise import rows
from retain.per_sample.terms import OneByOne, Term


def convolution(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Term | None:
    """gₖ is the ordinary weight gradient of sample k alone; a bias gets Dₖ summed over pixels."""
    if layout.dim != 0:
        return None
    if index == 2:
        return rows(grad.movedim(1, -1), layout, shape)
    if index != 1 or not isinstance(layout, Blocks):
        return None
    inputs, weight = node._saved_input, node._saved_weight
    settings = _settings(node)

    def gradient(sample: int) -> Tensor:
        d, x = (layout.split(t)[:, sample].flatten(0, 1) for t in (grad, inputs))
        mask = [False, True, False]
        found = torch.ops.aten.convolution_backward(d, x, weight, None, *settings, mask)
        return cast(Tensor, found[1])

    return OneByOne(gradient, "convolution")


def _settings(node: Any) -> tuple[Any, ...]:
    return (
        node._saved_stride,
        [_signed(p) for p in node._saved_padding],
        node._saved_dilation,
        node._saved_transposed,
        node._saved_output_padding,
        node._saved_groups,
    )


def _signed(number: int) -> int:
    """Autograd hands some integers out as unsigned 64-bit."""
    return number - (1 << 64) if number >= 1 << 63 else number
