"""Which positions of a batch count: what attention and padding masks say, in whatever form.

n samples, T positions. A mask comes as the model wants it: of bools, integers or floats; one number
per position, or one per pair of positions; and it says either what is kept or what is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retain.errors import InputError
from retain.samples.pairs import kept_by

# True or one, or zero where it is added: kept. Outputs of a decoder follow the mask of a decoder.
KEPT = ("attention_mask",)
KEPT_IN_DECODER = ("decoder_attention_mask",)
# True or −∞: left out, as in torch.nn's layers.
LEFT_OUT = ("key_padding_mask", "src_key_padding_mask")
LEFT_OUT_IN_DECODER = ("tgt_key_padding_mask",)
# What a decoder reads: with one of these, outputs follow it and not the encoder.
OF_DECODER = ("decoder_input_ids", "decoder_inputs_embeds", "tgt", "labels")
NO_LABEL = -100  # of a position that has none
LIKE_MASKS = ("mask", "pad", "valid")  # parts of other names that masks may have
LEFT_OUT_BELOW = -1e3  # in a mask that is added: half precision has −1e4, others less
OF_SAMPLES = (*LEFT_OUT, *LEFT_OUT_IN_DECODER, "memory_key_padding_mask")  # [n, T] in every layout


def of_encoder(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """[n, T] of bools for every mask of the only, or the first, sequence that the model reads."""
    return _masks(inputs, KEPT, LEFT_OUT)


def of_decoder(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """[n, T] of bools for every mask of what a decoder reads."""
    found = _masks(inputs, KEPT_IN_DECODER, LEFT_OUT_IN_DECODER)
    decoded = inputs.get("labels")
    if decoded is not None and decoded.ndim == 2 and bool((decoded == NO_LABEL).any()):
        found.append(decoded != NO_LABEL)
    return found


def has_decoder(inputs: Mapping[str, Any]) -> bool:
    """Whether outputs follow the input of a decoder."""
    return any(name in inputs for name in (*OF_DECODER, *KEPT_IN_DECODER, *LEFT_OUT_IN_DECODER))


def _masks(
    inputs: Mapping[str, Tensor], kept: tuple[str, ...], left_out: tuple[str, ...]
) -> list[Tensor]:
    alone = (inputs[name] for name in kept if name in inputs)
    found = [kept_positions(mask) for mask in alone if not of_several_texts(mask, inputs)]
    found += [~padding(inputs[name], name) for name in left_out if name in inputs]
    return [mask for mask in found if mask is not None]


def kept_positions(mask: Tensor) -> Tensor | None:
    """[n, T]: the positions that an attention mask [n, T], [n, T, T] or [n, heads, T, T] keeps.

    Of a mask over pairs, these are the positions that another one looks at (pairs.py). None for
    other shapes: there may be keys that were kept from earlier.
    """
    if mask.ndim == 2:
        return _allowed(mask)
    if mask.ndim not in (3, 4) or mask.shape[-2] not in (1, mask.shape[-1]):
        return None
    return kept_by(pairs(mask))


def of_several_texts(mask: Tensor, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a mask is [n, choices, T]: tokens have that shape, and nothing has positions [n, T].

    It says nothing of an output [n, choices], also if there are as many choices as positions.
    """
    if mask.ndim != 3:
        return False
    others = [t for t in inputs.values() if t is not mask]
    of_positions = [t for t in others if t.ndim > 1 and t.shape != mask.shape]
    return any(t.shape == mask.shape and are_numbers(t) for t in others) and not any(
        t.shape[:2] == (mask.shape[0], mask.shape[2]) for t in of_positions
    )


def pairs(mask: Tensor) -> Tensor:
    """[n, T, T] of bools: who may look at whom, by a mask [n, T, T] or [n, heads, T, T]."""
    allowed = _allowed(mask)
    return allowed if mask.ndim == 3 else allowed.any(1)


def padding(mask: Tensor, name: str) -> Tensor:
    """[n, T] of bools: where a padding mask is True or −∞.

    Raises:
        InputError: it holds other numbers.
    """
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point() and bool((mask <= 0).all()):
        return mask <= LEFT_OUT_BELOW
    raise InputError(
        f"{name} is {mask.dtype}; expected bools, True where there is padding: pass {name} == 0 if "
        "it is 0 there."
    )


def _allowed(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point() and bool((mask <= 0).all()):
        return mask > LEFT_OUT_BELOW  # it is added to the scores of the attention
    return mask > 0


def looks_padded(tokens: Tensor) -> int | None:
    """The token that seems to pad the rows of integers [n, T], or None.

    One that stands nowhere but in a run at the end (or beginning) of several rows, in runs of
    several lengths.
    """
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        return None
    if tokens.shape[0] < 2 or tokens.shape[1] < 3:
        return None
    for rows in (tokens, tokens.flip(1)):
        last = rows[:, -1:]
        # [n]: how long the run of its last token is, in every row
        run_n = (rows == last).flip(1).cumprod(1).sum(1)
        for token in last[run_n > 1].unique().tolist():
            runs = run_n[last[:, 0] == token]
            if len(runs) < 2 and int(runs.max()) < 3:
                continue
            nowhere_else = int((rows == token).sum()) == int(runs.sum())
            several = len(runs.unique()) > 1 or len(runs) < len(rows)
            if nowhere_else and several:
                return int(token)
    return None


def looks_like_mask(values: Tensor, name: str) -> bool:
    """Whether [n, T] may be a mask of padding: two values, each on one side of every row."""
    named = values.dtype == torch.bool or any(part in name for part in LIKE_MASKS)
    if not named or values.ndim != 2 or values.shape[1] < 2:
        return False
    if bool((values == values[:1, :1]).all()) or bool(((values != 0) & (values != 1)).any()):
        return False
    steps = (values[:, 1:] != values[:, :-1]).sum(1)
    return bool((steps <= 1).all())


def looks_like_padded_texts(tokens: Tensor, ids: Tensor) -> int | None:
    """The token that makes up whole packed texts at the end (or beginning) of a row, or None.

    Args:
        tokens: [n, T] or [T].
        ids: the same shape: the number of the text that a position belongs to, −1 for none.
    """
    for rows, owners in ((tokens, ids), (tokens.flip(-1), ids.flip(-1))):
        for row, own in zip(torch.atleast_2d(rows), torch.atleast_2d(owners)):
            run = int((row.flip(0) == row[-1]).cumprod(0).sum())
            if 1 < run < len(row) and int(own[-1]) >= 0 and own[-run] != own[-run - 1]:
                return int(row[-1])
    return None


def are_numbers(values: Tensor) -> bool:
    """Whether it holds whole numbers."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
