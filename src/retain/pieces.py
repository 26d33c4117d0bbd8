"""Sums as large as the weights, made a piece of memory at a time.

Penalty, per-sample importance and the local rule all add to tensors of the weights' size. What they
add is made for a piece of them, in memory that is used again for the next: on a CPU it stays in the
cache, and nowhere is there a temporary as large as the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# A piece of this many numbers stays in a core's second-level cache (1 MiB of float32).
CACHED = 1 << 18
# One of this many, and what is made of it, in the last-level cache; matrix products of fewer rows
# are less efficient.
BLOCK = 1 << 20
ACCELERATED = 1 << 24  # long enough to hide that a kernel must be launched


def pieces(*tensors: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    """The same piece of every tensor, one after another, of so many numbers at most."""
    first = tensors[0]
    if first.numel() <= size:
        yield tensors
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
        return
    # Whole rows where they fit, so that a piece is contiguous; the longest dimension otherwise.
    rows_fit = first.numel() // first.shape[0] <= size
    dim = 0 if rows_fit else max(range(first.ndim), key=lambda d: first.shape[d])
    count = max(1, size * first.shape[dim] // first.numel())
    for each in zip(*(tensor.split(count, dim) for tensor in tensors), strict=True):
        yield from pieces(*each, size=size)


class Scratch:
    """Memory for a piece, used again for every piece.

    Fresh memory would cost more than the arithmetic that is done in it.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._kept: Tensor | None = None

    def like(self, piece: Tensor) -> Tensor:
        """The memory, shaped like `piece`; what was in it is lost."""
        if self._kept is None or self._kept.shape != piece.shape:
            self._kept = torch.empty_like(piece, dtype=self.dtype, requires_grad=False)
        return self._kept


def add_powers_(total: Tensor, values: Tensor, power: int) -> None:
    """Add |values|ᵖ to `total`, whose shape they have, in its precision; p is 1 or 2."""
    scratch = Scratch(total.dtype)
    for part, given in pieces(total, values, size=_size(total)):
        wide = given.to(part.dtype)
        if power == 1:
            part.add_(torch.abs(wide, out=scratch.like(part)))
        else:
            part.addcmul_(wide, wide)


def together(samples: int, numbers: int, held: int) -> int:
    """How many samples to take at once, if each makes so many numbers and so many are held."""
    return max(1, min(samples, held // max(1, numbers)))


def _size(tensor: Tensor) -> int:
    return BLOCK if tensor.device.type == "cpu" else ACCELERATED
