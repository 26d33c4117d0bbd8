"""Convolutions in any number of dimensions, transposed or not: one sample at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.per_sample.layout import Blocks, Layout
from retain.per_sample.rules.elementwise import rows
from retain.per_sample.terms import Factors, OneByOne, Rows, Term

# With fewer pixels than this, a convolution of one sample keeps a core less busy than the matrix
# product of its unfolded input (measured with kernels of 3²: 0.7 × as quick at 14², twice at 7²).
FEW_PIXELS = 100
# With fewer than this, separate channels of all samples are better taken at once than sample by
# sample (measured with kernels of 3²: five times slower at 56², 5 × as quick at 14²).
FEW_PIXELS_OF_CHANNELS = 256
HELD = 1 << 22  # numbers: gradients of samples that may be held at once


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
    return weight_term(node._saved_input, grad, node._saved_weight, _settings(node), layout)


class Settings(NamedTuple):
    """How a convolution was called, every number spelt out for each of its dimensions."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


def weight_term(
    inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings, layout: Blocks
) -> Term:
    """The weight's gradient sample by sample; `grad` is that of the convolution's result."""
    pixels = grad.shape[2:].numel()
    plain = inputs.ndim == 4 and settings.groups == 1 and not settings.transposed
    whole = len(grad) == layout.samples
    small = weight[0, 0].numel() == 1 and not any(settings.padding)
    if (pixels <= FEW_PIXELS or small) and plain and whole:
        return _unfolded(inputs, grad, weight, settings)
    several = settings.groups > 1 and not settings.transposed
    few = pixels <= FEW_PIXELS_OF_CHANNELS and layout.samples * weight.numel() <= HELD
    if several and few and whole:
        return _as_groups(inputs, grad, weight, settings)

    def gradient(sample: int) -> Tensor:
        d, x = (layout.split(t)[:, sample].flatten(0, 1) for t in (grad, inputs))
        return weight_gradient(x, d, weight, settings)

    return OneByOne(gradient, "convolution")


def weight_gradient(inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Σ over samples and pixels, shaped like the weight, whose values do not matter."""
    mask = [False, True, False]
    found = torch.ops.aten.convolution_backward(grad, inputs, weight, None, *settings, mask)
    return cast(Tensor, found[1])


def _as_groups(inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings) -> Rows:
    """The batch as one sample of n times the groups, whose weights are those of every sample."""
    n = len(grad)
    d, x = (t.reshape(1, n * t.shape[1], *t.shape[2:]) for t in (grad, inputs))
    weights = weight.new_empty(n * weight.shape[0], *weight.shape[1:])
    found = weight_gradient(x, d, weights, settings._replace(groups=n * settings.groups))
    return Rows(found.view(n, *weight.shape), "convolution")


def _unfolded(inputs: Tensor, grad_nptt: Tensor, weight: Tensor, settings: Settings) -> Factors:
    """The convolution as the matrix product that it is: one row per pixel of the result."""
    kernel = tuple(weight.shape[2:])
    dilation, padding, stride = map(tuple, (settings.dilation, settings.padding, settings.stride))
    if kernel == (1, 1) and not any(padding):
        columns_nqt = inputs[:, :, :: stride[0], :: stride[1]].flatten(2)
    else:
        columns_nqt = F.unfold(inputs, kernel, dilation, padding, stride)
    return Factors(grad_nptt.flatten(2).mT, columns_nqt.mT, None, "convolution")


def _settings(node: Any) -> Settings:
    return Settings(
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
