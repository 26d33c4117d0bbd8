"""Parameters that are sharded over processes (DTensor, as `fully_shard` leaves them).

What is done element by element is done on this rank's own shard; only sums over all elements, and
files, need the others. Nothing of torch.distributed is loaded where nothing is sharded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: object) -> bool:
    """Whether a rank has only its own part of `tensor`."""
    loaded: Any = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def local(tensor: Any) -> Tensor:
    """This rank's shard, which shares the memory; an ordinary tensor as it is."""
    shard: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return shard


def like(shard: Tensor, parameter: Any) -> Tensor:
    """A shard as a tensor that is sharded like `parameter`; as it is, if that is not."""
    if not is_sharded(parameter):
        return shard
    placed: Tensor = type(parameter.data).from_local(
        shard,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return placed


def sharded_like(whole: Tensor, parameter: Any) -> Tensor:
    """`whole`, which every rank has, sharded like `parameter`; nothing is sent."""
    if not is_sharded(parameter) or is_sharded(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    there = whole.to(parameter.device)
    placed: Tensor = distribute_tensor(
        there, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    # A copy, so that the whole can be let go.
    return like(local(placed).clone(), parameter)


def whole(tensor: Any) -> Tensor:
    """All of a tensor, on every rank: each has to ask for it."""
    if not is_sharded(tensor):
        here: Tensor = tensor
        return here
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():  # which no backend sends
        return whole(like(local(tensor).view(torch.uint8), tensor)).view(tensor.dtype)
    full: Tensor = tensor.full_tensor()
    return full


class _Sum(torch.autograd.Function):
    """Σ over the ranks that have other shards; each rank's own part gets the whole gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, parameter: Any) -> Tensor:
        import torch.distributed as dist
        from torch.distributed.tensor import Shard

        total = part.clone()
        for dim, placement in enumerate(parameter.placements):
            if isinstance(placement, Shard):
                dist.all_reduce(total, group=parameter.device_mesh.get_group(dim))
        return total

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None]:
        return incoming, None


def over_shards(part: Tensor, parameter: object) -> Tensor:
    """Σ over all shards of a sum over this one's elements, differentiable. All ranks ask."""
    if not is_sharded(parameter):
        return part
    total: Tensor = _Sum.apply(part, parameter)
    return total


def any_sharded(tensors: Iterable[object]) -> bool:
    """Whether any of these is sharded."""
    return any(is_sharded(tensor) for tensor in tensors)
