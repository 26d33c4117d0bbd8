"""What a user says about rows: `samples_of` and `padding_mask`, by name or by a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from retain.errors import InputError
from retain.samples import masks
from retain.samples.batches import input_of
from retain.samples.containers import parts_of
from retain.samples.packing import of_nodes
from retain.samples.rows import Rows

SamplesOf = str | Callable[[Any], Any] | None
PaddingMask = str | Callable[[Any], Tensor] | None


def rows_said(samples_of: str | Callable[[Any], Any], raw: Any, named: dict[str, Tensor]) -> Rows:
    """Which sample each row of a batch belongs to, as `samples_of` says.

    Args:
        samples_of: the name of an input that numbers samples, or a function of the batch that gives
            their numbers, for all rows or as a mapping from the names of inputs (and "output").
        raw: the batch as it was given.
        named: every tensor that the model is given, by its name.

    Raises:
        InputError: it says nothing of the kind.
    """
    given = _looked_up(samples_of, raw, named, "samples_of")
    if not isinstance(given, Mapping):
        ids = _owners(given, named)
        if _is_of_one_row(ids, named):
            ids = ids[None]
        numbers = _equal(named, ids)
        if ids.ndim == 2:
            return Rows.of((ids,), int(ids.max()) + 1, numbers=dict.fromkeys(numbers, 0))
        return of_nodes(named, ids, numbers)
    owners = {str(name): _owners(ids, named) for name, ids in given.items()}
    numbers = [name for ids in owners.values() for name in _equal(named, ids)]
    return Rows.of(
        tuple(owners.values()),
        1 + max(int(ids.max()) for ids in owners.values()),
        named={name: at for at, name in enumerate(owners)},
        numbers=dict.fromkeys(numbers, 0),
        indices=frozenset(name for name in named if "index" in name) - owners.keys(),
    )


def _is_of_one_row(ids: Tensor, named: Mapping[str, Tensor]) -> bool:
    """Whether [rows] is of the positions of inputs [1, rows, …], and of no input [rows, …]."""
    shapes = [tuple(tensor.shape) for tensor in named.values()]
    row = (1, len(ids))
    return (
        ids.ndim == 1 and row in (s[:2] for s in shapes) and row[1:] not in (s[:1] for s in shapes)
    )


def padding_said(
    padding_mask: str | Callable[[Any], Tensor], raw: Any, named: dict[str, Tensor]
) -> Tensor:
    """[n, T] of bools, True where there is padding, as `padding_mask` says.

    Raises:
        InputError: it says nothing of the kind.
    """
    mask = _looked_up(padding_mask, raw, named, "padding_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"padding_mask is {got}; expected a tensor [samples, positions].")
    return masks.padding(mask, "padding_mask")


def padding_beside(raw: Any, named: dict[str, Tensor]) -> Tensor | None:
    """The same, as a mask says that stands in the batch, and that the model does not take."""
    source, _ = input_of(raw)
    parts = (parts_of(source) or {}).items()
    beside = {k: t for k, t in parts if isinstance(t, Tensor) and k not in named}
    every = masks.of_decoder(beside) if masks.has_decoder(named) else masks.of_encoder(beside)
    return next((~mask for mask in every), None)


def _equal(named: Mapping[str, Tensor], ids: Tensor) -> list[str]:
    """The inputs that are these numbers themselves."""
    return [
        name
        for name, tensor in named.items()
        if tensor.shape == ids.shape and bool((tensor == ids.to(tensor.device)).all())
    ]


def _looked_up(given: Any, raw: Any, named: Mapping[str, Tensor], what: str) -> Any:
    if callable(given):
        return given(raw)
    source, _ = input_of(raw)
    parts = parts_of(source) or {}
    if given in named or given in parts:
        return named[given] if given in named else parts[given]
    raise InputError(
        f"{what}={given!r} is no input of this batch; known: "
        f"{', '.join(map(str, parts or named))}. Give its name, or a function of the batch: "
        f"{what}=lambda batch: …"
    )


def _owners(given: Any, named: Mapping[str, Tensor]) -> Tensor:
    """[rows] or [rows, positions]: the numbers of samples, from 0.

    Raises:
        InputError: they are none.
    """
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"samples_of gives a {type(given).__name__}; expected the number of a sample for "
            f"every row, as a tensor or a list, or a mapping of such: {error}"
        ) from error
    if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.numel() == 0:
        raise InputError(
            f"samples_of gives {ids.dtype} of shape {tuple(ids.shape)}; expected whole "
            "numbers, the number of a sample for every row."
        )
    ids = ids.long()
    if int(ids.min()) < -1 or int(ids.max()) < 0:
        raise InputError(
            f"samples_of gives numbers from {int(ids.min())} to {int(ids.max())}; expected the "
            "number of a sample for every row, 0, 1, …, and −1 for rows that do not count."
        )
    present = ids[ids >= 0].unique()
    if len(present) <= int(ids.max()) and not _equal(named, ids):  # of a whole data set
        ids = torch.where(ids < 0, ids, torch.searchsorted(present, ids))
    return ids
