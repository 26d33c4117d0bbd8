"""From what a user hands to `observe` to one batch after another, with progress and with blame."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from retain.errors import InputError, RetainError
from retain.memory.mishaps import explained

CUT = 64  # samples per batch when the data is one tensor
EXPECTED = "a DataLoader, a list, a generator or another iterable of batches, or one tensor"


def batches_in(data: Any, *, batch_dim: int, expected: str = EXPECTED) -> Iterable[Any]:
    """The batches of `data`; one tensor is the whole data and is cut along `batch_dim`.

    Raises:
        InputError: it cannot be gone through batch by batch.
    """
    if isinstance(data, Tensor):
        if data.ndim <= batch_dim or data.shape[batch_dim] == 0:
            raise InputError(
                f"The data is a tensor of shape {tuple(data.shape)}, without any sample along "
                f"dimension {batch_dim}."
            )
        return torch.split(data, CUT, batch_dim)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise InputError(
            f"The data is a {type(data).__name__}, which gives single samples, not batches. "
            "Put it into a DataLoader: observe(DataLoader(dataset, batch_size=64))."
        )
    if isinstance(data, Mapping):
        raise InputError("The data is a mapping. If it is one batch, put it in a list: [batch].")
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise InputError(f"The data is a {type(data).__name__}; expected {expected}.")
    batches: Iterable[Any] = data
    return batches


@contextmanager
def progress_of(data: Any, *, wanted: bool) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each batch; it moves a bar if there is a terminal."""
    if wanted and _may_be_terminal(sys.stderr):
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            from rich.progress import Progress

            with Progress(console=console, transient=True) as bar:
                task = bar.add_task("observing", total=_length(data))
                yield lambda: bar.advance(task)
            return
    yield lambda: None


def _may_be_terminal(stream: TextIO | None) -> bool:
    """Whether to ask rich, which takes long for someone who observes every batch by itself."""
    forced = any(name in os.environ for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    return forced or (stream is not None and stream.isatty())


@contextmanager
def blaming(
    number: int, kept: Callable[[], int] | None, model: nn.Module, raw: object
) -> Iterator[None]:
    """Say which batch it was, in whatever goes wrong inside; and how many samples are safe.

    `kept` says how many; None where nothing is to be kept.
    """
    try:
        yield
    except Exception as error:
        known = error if isinstance(error, RetainError) else explained(error, model, raw)
        if known is not None:
            raise type(known)(f"Batch {number} (the first is 1): {known}{_safe(kept)}") from error
        raise InputError(
            f"Batch {number} (the first is 1) failed with {type(error).__name__}: "
            f"{str(error).rstrip('. ')}.{_safe(kept)}"
        ) from error


def _safe(kept: Callable[[], int] | None) -> str:
    if kept is None:
        return ""
    samples = kept()
    return (
        f" The {samples} samples observed before it are kept." if samples else " Nothing is kept."
    )


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None
