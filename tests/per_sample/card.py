"""The arithmetic of a graphics card, played on a CPU: rounded products, and last bits that wander.

A card's results differ from a CPU's in three ways, none of which mixes samples: convolutions look
at 10 bits of their operands' mantissas (TF32, while it is allowed); the order of a sum depends on
the size of the batch, and in some backwards on chance; so results wander in their last bits, by a
share of the largest number that the *sample* has there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LAST_BITS = 2e-7  # of a sample's largest number: float32, summed in another order
ROUNDED = {"convolution": 2, "convolution_backward": 3}  # → how many operands TF32 rounds
WANDERING = {
    *ROUNDED, "mm", "addmm", "bmm", "baddbmm", "max_pool2d_with_indices_backward",
    "native_batch_norm_backward", "_adaptive_avg_pool2d_backward", "embedding_dense_backward",
    "index_add", "_scaled_dot_product_flash_attention_for_cpu_backward",
}  # fmt: skip


def to_tf32(tensor: Tensor) -> Tensor:
    """The nearest number with 10 bits of mantissa, halves to even."""
    if tensor.dtype != torch.float32:
        return tensor
    # the 13 bits below are rounded away by adding a power of two so large that they fall off
    shift = tensor.detach() * float(2**13 + 1)
    rounded = shift - (shift - tensor)
    return torch.where(rounded.isfinite(), rounded, tensor)


class GpuLike(TorchDispatchMode):
    """Float32 operations inside give what a card would give. Counts backward passes of layers."""

    def __init__(self, *, tf32: bool, noise: float = LAST_BITS) -> None:
        super().__init__()
        self.tf32, self.noise = tf32, noise
        self.chance = torch.Generator().manual_seed(7)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and not isinstance(args[0], Tensor):
            return args[0]  # PyTorch hands a mode the numbers of which some tensors are made
        allowed = self.tf32 and torch.backends.cudnn.allow_tf32
        if name in ROUNDED and allowed:
            args = tuple(
                to_tf32(a) if i < ROUNDED[name] and isinstance(a, Tensor) else a
                for i, a in enumerate(args)
            )
        result = func(*args, **(kwargs or {}))
        if name not in WANDERING:
            return result
        if isinstance(result, (tuple, list)):
            return type(result)(self._wandered(one) for one in result)
        return self._wandered(result)

    def _wandered(self, one: Any) -> Any:
        if not isinstance(one, Tensor) or one.dtype != torch.float32 or one.ndim == 0:
            return one
        if not one.numel():
            return one
        over, sizes = list(range(1, one.ndim)), one.abs()
        sizes = sizes.where(sizes.isfinite(), 0.0)  # what a mask of −∞ was added to
        largest = sizes.amax(over, keepdim=True) if over else sizes
        by = torch.rand(one.shape, generator=self.chance).mul_(2).sub_(1)
        # what is exactly zero (a dead unit, padding) was added up from zeros: it stays
        return one + by.mul_(largest * self.noise).mul_(one != 0)


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """PyTorch's switch for convolutions, put back afterwards."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
