"""Convolutions in any number of dimensions, transposed or not: one sample at a time."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.per_sample.layout import Blocks, Layout
from retain.per_sample.rules.elementwise import rows
from retain.per_sample.terms import Factors, OneByOne, Term

# With fewer pixels than this, a convolution of one sample keeps a core less busy than the matrix
# product of its unfolded input (measured: equal at 28², 1.7 × as quick at 7²).
FEW_PIXELS = 256


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
    pixels = grad.shape[2:].numel()
    if pixels <= FEW_PIXELS and _unfolds(node, inputs) and len(grad) == layout.samples:
        return _unfolded(node, grad)

    def gradient(sample: int) -> Tensor:
        d, x = (layout.split(t)[:, sample].flatten(0, 1) for t in (grad, inputs))
        mask = [False, True, False]
        found = torch.ops.aten.convolution_backward(d, x, weight, None, *settings, mask)
        return cast(Tensor, found[1])

    return OneByOne(gradient, "convolution")


def _unfolds(node: Any, inputs: Tensor) -> bool:
    return inputs.ndim == 4 and node._saved_groups == 1 and not node._saved_transposed


def _unfolded(node: Any, grad_nptt: Tensor) -> Factors:
    """The convolution as the matrix product that it is: one row per pixel of the result."""
    kernel = node._saved_weight.shape[2:]
    padding = [_signed(p) for p in node._saved_padding]
    columns_nqt = F.unfold(
        node._saved_input, kernel, node._saved_dilation, tuple(padding), node._saved_stride
    )
    return Factors(grad_nptt.flatten(2).mT, columns_nqt.mT, None, "convolution")


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
