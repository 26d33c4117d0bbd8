"""Convolutions in any number of dimensions, transposed or not.

One sample at a time, as products of their patches, or as groups of one large convolution: on a CPU
by rules of thumb for few pixels and separate channels, and otherwise, as on an accelerator,
whichever turns out to be the quickest where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.per_sample import devices
from retain.per_sample.contributions import (
    Contribution,
    Factors,
    OneByOne,
    Patches,
    SampleGradients,
    Together,
)
from retain.per_sample.layout import Blocks, Layout
from retain.per_sample.quickest import quickest
from retain.per_sample.rules.elementwise import rows
from retain.per_sample.summing import sum_contributions
from retain.per_sample.sums import Sum
from retain.pieces import CACHED

# With fewer pixels than this, a convolution of one sample keeps a core less busy than the matrix
# product of its patches (measured with kernels of 3²: twice as quick at 7², 1.25 × at 14², 0.8 ×
# at 56²).
FEW_PIXELS = 400
# With fewer than this, separate channels of all samples are better taken at once than sample by
# sample (measured with kernels of 3²: as quick at 56², 2.6 × at 28², 4 × at 14²).
FEW_PIXELS_OF_CHANNELS = 1000
HELD = 1 << 22  # numbers: gradients of samples that may be held at once
# Where channels are separate, oneDNN has a quick weight gradient up to this size only (measured: 5²
# at 28² takes 60 × as long as `_as_kernels`, 7² at 56² 13 ×).
QUICK_KERNEL = 3
REARRANGED = 1 << 20  # numbers: inputs of samples that are rearranged together, within the cache
TRIED = 4  # samples with which ways are compared on a CPU


def convolution(
    node: Any, index: int, grad: Tensor, layout: Layout, shape: torch.Size
) -> Contribution | None:
    """gₖ is the ordinary weight gradient of sample k alone; a bias gets Dₖ summed over pixels."""
    if layout.dim != 0:
        return None
    if index == 2:
        return rows(grad.movedim(1, -1), layout, shape)
    if index != 1 or not isinstance(layout, Blocks):
        return None
    return weight_contribution(node._saved_input, grad, node._saved_weight, _settings(node), layout)


class Settings(NamedTuple):
    """How a convolution was called, every number spelt out for each of its dimensions."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


def weight_contribution(
    inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings, layout: Blocks
) -> Contribution:
    """The weight's gradient sample by sample; `grad` is that of the convolution's result."""
    pixels = grad.shape[2:].numel()
    single = settings.groups == 1 and not settings.transposed
    whole = len(grad) == layout.samples
    if whole and single and weight[0, 0].numel() == 1 and not any(settings.padding):
        return _pointwise(inputs, grad, settings)
    held = devices.room(grad.device)
    if held is not None and whole:
        return _on_accelerator(inputs, grad, weight, settings, held)
    plain = single and inputs.ndim == 4
    if plain and whole and pixels <= FEW_PIXELS:
        numbers = layout.samples * (pixels * weight[0].numel() + weight.numel())
        together = 2 * weight.numel() <= CACHED and numbers <= HELD
        return (_unfolded if together else _patches)(inputs, grad, weight, settings)
    several = settings.groups > 1 and not settings.transposed
    # where a kernel is larger than what it gives, oneDNN has cliffs (measured: 3² at 2², channels
    # last, takes 100 × as long in groups as `_as_kernels`; at 1² it is the other way round)
    tiny = any(size < kernel for size, kernel in zip(grad.shape[2:], weight.shape[2:]))
    if several and whole and not tiny and layout.samples * weight.numel() <= HELD:
        if max(weight.shape[2:]) > QUICK_KERNEL and _separate(inputs, weight):
            return _as_kernels(inputs, grad, weight, settings)
        # with channels last they have to be rearranged, which is memory that a sample does not need
        if pixels <= (FEW_PIXELS if _channels_last(inputs) else FEW_PIXELS_OF_CHANNELS):
            return _as_groups(inputs, grad, weight, settings)
    if whole:
        return _on_cpu(inputs, grad, weight, settings)
    return _one_by_one(inputs, grad, weight, settings, layout)


def _one_by_one(
    inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings, layout: Blocks
) -> OneByOne:
    if len(grad) == layout.samples:

        def gradient(sample: int) -> Tensor:  # slices lie in memory as the batch does
            d, x = (t[sample : sample + 1] for t in (grad, inputs))
            return weight_gradient(x, d, weight, settings)
    else:

        def gradient(sample: int) -> Tensor:
            d, x = (layout.split(t)[:, sample].flatten(0, 1) for t in (grad, inputs))
            return weight_gradient(x, d, weight, settings)

    return OneByOne(gradient, "convolution")


def _on_cpu(inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings) -> Contribution:
    """One sample after another, or all together where they fit: the quickest of several ways."""
    n, still = len(grad), inputs if settings.transposed else grad
    columns = settings.groups * still.shape[2:].numel() * weight[0].numel()  # of one sample

    def each(x: Tensor, d: Tensor) -> Contribution:
        return _one_by_one(x, d, weight, settings, Blocks(0, 1, len(d), 1))

    ways: dict[str, Callable[[Tensor, Tensor], Contribution]] = {"each": each}
    if columns <= HELD and max(inputs.numel(), grad.numel()) <= HELD:
        ways["patches"] = lambda x, d: _patches(x, d, weight, settings)
    # with channels last the samples are rearranged, which is worth it where channels are separate
    copied = inputs.numel() if settings.groups > 1 and _channels_last(inputs) else 0
    if n * weight.numel() <= HELD and copied <= HELD:
        ways["groups"] = lambda x, d: _as_groups(x, d, weight, settings)
        if settings.groups > 1 and not settings.transposed and _separate(inputs, weight):
            ways["kernels"] = lambda x, d: _as_kernels(x, d, weight, settings)
    if len(ways) == 1:
        return each(inputs, grad)
    few = min(n, TRIED)

    def tried(way: Callable[[Tensor, Tensor], Contribution]) -> None:
        total = Sum(weight.shape, weight.dtype, weight.device, power=1)
        sum_contributions([way(inputs[:few], grad[:few])], few, total)

    about = _about(inputs, grad, weight, settings)
    trials = {name: partial(tried, way) for name, way in ways.items()}
    return ways[quickest(about, trials, grad.device)](inputs, grad)


def _about(
    inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings
) -> tuple[Hashable, ...]:
    """By what it is known which way is the quickest."""
    shapes = (inputs.shape[1:], grad.shape[1:], weight.shape, inputs.dtype)
    strides = (inputs.stride()[1:], grad.stride()[1:])
    listed = (tuple(s) if isinstance(s, Sequence) else s for s in settings)
    return ("convolution", *shapes, *strides, *listed, torch.get_num_threads())


def weight_gradient(inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Σ over samples and pixels, shaped like the weight, whose values do not matter."""
    mask = [False, True, False]
    found = torch.ops.aten.convolution_backward(grad, inputs, weight, None, *settings, mask)
    return cast(Tensor, found[1])


def _separate(inputs: Tensor, weight: Tensor) -> bool:
    """Whether every channel has its own kernel, in what oneDNN convolves quickly."""
    own = weight.shape[:2] == (inputs.shape[1], 1)
    suits = inputs.device.type == "cpu" and inputs.dtype == torch.float32 and inputs.ndim == 4
    return own and suits and torch.backends.mkldnn.is_available()


def _as_kernels(
    inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings
) -> SampleGradients:
    """Separate channels: δ is itself a kernel with which each sample's input is convolved."""
    channels, _, high, wide = weight.shape
    each = max(1, REARRANGED // inputs[0].numel())
    # g[u, v] = Σ_hw δ[h, w] x[s h + d u, s w + d v]: stride s and dilation d change places
    parts = [
        F.conv2d(
            x.reshape(1, -1, *x.shape[2:]), d.reshape(-1, 1, *d.shape[2:]), None,
            tuple(settings.dilation), tuple(settings.padding), tuple(settings.stride),
            groups=len(x) * channels,
        )[..., :high, :wide].reshape(len(x), *weight.shape)
        for x, d in zip(inputs.split(each), grad.split(each))
    ]  # fmt: skip
    return SampleGradients(torch.cat(parts), "convolution")


def _as_groups(inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings) -> SampleGradients:
    """The batch as one sample of n times the groups, whose weights are those of every sample."""
    n = len(grad)
    last = weight.shape[1] == 1 and _channels_last(inputs)
    d, x = (_side_by_side(t, last=last) for t in (grad, inputs))
    weights = weight.new_empty(n * weight.shape[0], *weight.shape[1:])
    found = weight_gradient(x, d, weights, settings._replace(groups=n * settings.groups))
    return SampleGradients(found.view(n, *weight.shape), "convolution")


def _side_by_side(images: Tensor, *, last: bool) -> Tensor:
    """[n, c, h, w] → [1, n · c, h, w]; with these channels `last` in memory, if they were so."""
    if not last:
        return images.reshape(1, -1, *images.shape[2:])
    return images.permute(2, 3, 0, 1).flatten(2)[None].permute(0, 3, 1, 2)


def _channels_last(images: Tensor) -> bool:
    if images.ndim != 4 or images.is_contiguous():
        return False
    return images.is_contiguous(memory_format=torch.channels_last)


def _on_accelerator(
    inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings, held: int
) -> Contribution:
    """As many samples at a time as there is room for, in the quicker of two ways."""
    ways = {name: make(inputs, grad, weight, settings) for name, make in ON_ACCELERATORS.items()}
    few = max(1, min(len(grad), held // max(weight.numel(), grad[0].numel())))

    def gradients(contribution: Contribution) -> Tensor:
        out = weight.new_zeros(few, *weight.shape)
        contribution.add_samples(0, few, out)
        return out

    about = (few, *_about(inputs, grad, weight, settings))
    trials = {name: partial(gradients, contribution) for name, contribution in ways.items()}
    return ways[quickest(about, trials, grad.device)]


def _in_groups(inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings) -> Together:
    """`_as_groups` for some samples at a time."""

    def gradients(start: int, stop: int) -> Tensor:
        return _as_groups(inputs[start:stop], grad[start:stop], weight, settings).values

    return Together(gradients, "convolution")


def _pointwise(inputs: Tensor, grad: Tensor, settings: Settings) -> Factors:
    """A kernel of one pixel: a matrix product of channels, pixel by pixel."""
    seen = inputs
    for dim, step in enumerate(settings.stride, 2):
        seen = seen if step == 1 else seen[(slice(None),) * dim + (slice(None, None, step),)]
    return Factors(grad.flatten(2).mT, seen.flatten(2).mT, None, "convolution")


def _unfolded(inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings) -> Factors:
    """The convolution as the matrix product that it is: one row per pixel of the result."""
    geometry = (settings.dilation, settings.padding, settings.stride)
    columns_nqt = F.unfold(inputs, weight.shape[2:], *map(tuple, geometry))
    return Factors(grad.flatten(2).mT, columns_nqt.mT, None, "convolution")


def _patches(inputs: Tensor, grad: Tensor, weight: Tensor, settings: Settings) -> Patches:
    """The same for some samples at a time, any number of dimensions, and groups.

    A transposed convolution is the backward of one whose inputs are its results: there, the
    patches are those of the gradient.
    """
    still, moving = (inputs, grad) if settings.transposed else (grad, inputs)
    kernel, groups, n = weight.shape[2:], settings.groups, len(grad)
    around = [side for pad in reversed(settings.padding) for side in (pad, pad)]
    padded = F.pad(moving.movedim(1, -1), [0, 0, *around]).contiguous()
    per_sample, *along, _ = padded.stride()
    q = padded.shape[-1] // groups
    patches = padded.as_strided(
        (n, groups, *still.shape[2:], *kernel, q),
        (
            *(per_sample, q),
            *(step * stride for step, stride in zip(settings.stride, along)),
            *(dilation * stride for dilation, stride in zip(settings.dilation, along)),
            1,
        ),
    )
    return Patches(still.reshape(n, groups, -1, still.shape[2:].numel()), patches)


# What an accelerator can do with many samples.
ON_ACCELERATORS: dict[str, Callable[[Tensor, Tensor, Tensor, Settings], Contribution]] = {
    "patches": _patches,
    "groups": _in_groups,
}


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
