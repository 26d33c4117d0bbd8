"""Which sample owns which row of a layer's inputs: found by running a few samples alone.

The local rule adds up the positions inside a sample before it takes |·|, so it must know them
apart. Rows are looked up in what a layer reads when a sample is alone in its batch: forward passes
only, once for a model, and no assumption about batch-first, sequence-first or flattened tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from retain.per_sample.layout import Blocks


@dataclass(frozen=True)
class Ownership:
    """Where the samples are in a layer's inputs.

    Attributes:
        dim: the dimension that holds them, alone or together with positions.
        order: "first": all positions of a sample together, as in a flattened [n·T, …]; "last":
            all samples of a position together, as in [T·n, …]; "shared": nowhere, every sample
            has the same rows, as in a table of relative positions.
    """

    dim: int
    order: Literal["first", "last", "shared"]

    def fits(self, inputs: Tensor, samples: int) -> bool:
        """Whether inputs of this shape can hold so many samples in this way."""
        return self.order == "shared" or (
            self.dim < inputs.ndim and inputs.shape[self.dim] % samples == 0
        )

    def blocks(self, rows: tuple[int, ...], samples: int) -> Blocks:
        """The layout of the samples when dimensions of sizes `rows` are flattened into one."""
        before, after = prod(rows[: self.dim]), prod(rows[self.dim + 1 :])
        positions = rows[self.dim] // samples
        if self.order == "first":
            return Blocks(0, before, samples, positions * after)
        return Blocks(0, before * positions, samples, after)


BATCH_FIRST = Ownership(0, "first")


def row_dims(inputs: Tensor, convolution: bool) -> int:
    """How many leading dimensions count rows: one in a convolution, all but the features else."""
    return 1 if convolution else inputs.ndim - 1


def evident(inputs: Tensor, samples: int, *, convolution: bool) -> bool:
    """Whether the shape leaves no doubt that dimension 0 counts the samples."""
    if samples == 1:
        return True
    others = inputs.shape[1 : row_dims(inputs, convolution)]
    return inputs.shape[0] == samples and all(size % samples for size in others)


def find(
    inputs: Tensor, alone: Mapping[int, Tensor], samples: int, *, convolution: bool
) -> Ownership | None:
    """The ownership by which each sample's rows are those that it has alone, or None.

    Args:
        inputs: what the layer read of the whole batch.
        alone: sample → what it read of this sample alone.
        samples: the size of the batch.
        convolution: whether only dimension 0 can hold samples.
    """
    shape = next(iter(alone.values())).shape
    if any(tensor.shape != shape for tensor in alone.values()) or len(shape) != inputs.ndim:
        return None
    for dim in range(row_dims(inputs, convolution)):
        grown = (*shape[:dim], shape[dim] * samples, *shape[dim + 1 :])
        if inputs.shape != grown:
            continue
        for order in ("first", "last"):
            owner = Ownership(dim, order)
            if all(_same(_part(inputs, owner, samples, k), rows) for k, rows in alone.items()):
                return owner
    if inputs.shape == shape and all(_same(inputs, rows) for rows in alone.values()):
        return Ownership(0, "shared")
    return None


def _part(inputs: Tensor, owner: Ownership, samples: int, sample: int) -> Tensor:
    """The rows of one sample, shaped as if it were alone."""
    first = owner.order == "first"
    apart = torch.unflatten(inputs, owner.dim, (samples, -1) if first else (-1, samples))
    return apart.select(owner.dim if first else owner.dim + 1, sample)


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding, which grows along a deep network."""
    tolerance = 5e-2 if one.dtype.itemsize < 4 else 1e-3
    error = torch.linalg.vector_norm((one - other).float())
    return bool(error <= tolerance * torch.linalg.vector_norm(other.float()))
