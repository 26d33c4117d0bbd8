"""Positions that a mask excludes do not count in ‖y_l‖² of any layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from retain.errors import InputError
from retain.local_rule.ownership import Ownership, row_dims
from retain.local_rule.watch import WatchedLayer
from retain.parameters import summed_in
from retain.per_sample import devices

# What a decoder reads of its encoder: these projections have the encoder's positions.
CROSSING = ("encoder_attn", "encdecattention", "crossattention", "cross_attn")


def that_exclude(masks: Sequence[Tensor]) -> list[Tensor]:
    """Those that exclude anything, as far as that is known without waiting for the device."""
    return [m for m in masks if devices.room(m.device) is not None or not bool(m.all())]


def unpadded(
    layer: WatchedLayer, owner: Ownership, samples: int, masks: Sequence[Tensor]
) -> WatchedLayer:
    """The layer with zeros in place of σ(z) σ′(z), and of its inputs, where there is padding.

    Args:
        layer: one use of a layer.
        owner: where the samples are in its inputs.
        samples: how many there are.
        masks: [n, T] of bools for every sequence, the decoder's last: True where it counts. A layer
            with as many positions as one of them has goes by it; others are left as they are.

    Raises:
        InputError: it may go by either of two masks, and its name does not tell.
    """
    rows = tuple(layer.inputs.shape[: row_dims(layer.inputs, layer.call.convolving is not None)])
    fitting = []
    for mask in masks:
        if layer.call.convolving is not None:
            kept = _along_the_last(layer.output, mask, samples)
        else:
            kept = _along_rows(rows, owner, samples, mask)
        if kept is not None:
            fitting.append(kept)
    if not fitting:
        return layer
    kept = _the_layers_own(layer, fitting)
    wide = summed_in(layer.call.weight.dtype)
    half_slope = layer.half_slope(wide).masked_fill(~kept, 0.0)
    inputs = layer.inputs
    if layer.call.convolving is None:
        inputs = inputs.masked_fill(~kept, 0.0)
    return replace(layer, inputs=inputs, output=half_slope, written=half_slope)


def _along_rows(
    rows: tuple[int, ...], owner: Ownership, samples: int, mask: Tensor
) -> Tensor | None:
    """`mask` [n, T] in the shape of rows, to broadcast over features; None if it does not fit."""
    if owner.order == "shared" or len(mask) != samples:
        return None
    sizes = [1] * (len(rows) + 1)
    positions = mask.shape[1]
    if rows[owner.dim] == samples * positions:
        in_order = mask if owner.order == "first" else mask.T
        sizes[owner.dim] = samples * positions
        return in_order.reshape(sizes)
    others = [d for d, size in enumerate(rows) if d != owner.dim and size == positions]
    if rows[owner.dim] != samples or len(others) != 1:
        return None
    sizes[owner.dim], sizes[others[0]] = samples, positions
    in_order = mask if owner.dim < others[0] else mask.T
    return in_order.reshape(sizes)


def _along_the_last(output: Tensor, mask: Tensor, samples: int) -> Tensor | None:
    """`mask` for a convolution [n, channels, T] that keeps the positions."""
    fits = output.ndim == 3 and output.shape[::2] == (samples, mask.shape[1])
    return mask[:, None] if fits and len(mask) == samples else None


def _the_layers_own(layer: WatchedLayer, fitting: Sequence[Tensor]) -> Tensor:
    """The mask of the sequence that the layer works on; its name tells which, where two fit."""
    first, last = fitting[0], fitting[-1]
    name = layer.names[0].lower()
    if len(fitting) == 1 or torch.equal(first, last):
        return first
    if "decoder" in name:
        reads_encoder = any(word in name for word in CROSSING) and not _is_query(name)
        return first if reads_encoder else last
    if "encoder" in name:
        return first
    raise InputError(
        "Two sequences of this batch are equally long but have different masks, so the local rule "
        f"cannot tell which of them the positions of {layer.names[0]} belong to. Pad one further."
    )


def _is_query(name: str) -> bool:
    """Whether a projection in an attention to the encoder works on the decoder's own positions."""
    return not any(part[:1] in ("k", "v") for part in name.split(".")[-2:-1])
