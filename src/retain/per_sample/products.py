"""Lᵀ R and |Lᵀ R| of one sample: the products in which most of the time is spent.

oneDNN multiplies single-precision matrices on CPUs with every instruction set that it finds, and
takes the absolute value before it writes the result. Where it is missing, or does not do what it is
asked, an ordinary matrix product does.
"""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from torch import Tensor


def product(left_tp: Tensor, right_tq: Tensor) -> Tensor:
    """Lᵀ R [p, q]."""
    if _suits(left_tp):
        return _fused(left_tp, right_tq, "none", [])
    return torch.mm(left_tp.T, right_tq)


def abs_product(left_tp: Tensor, right_tq: Tensor) -> Tensor:
    """|Lᵀ R| [p, q]."""
    if _suits(left_tp):
        # max(x, −1 · x) = |x|: the leaky ReLU of slope −1
        return _fused(left_tp, right_tq, "leaky_relu", [-1.0])
    return torch.mm(left_tp.T, right_tq).abs_()


def add_power_of_product(total: Tensor, left_tp: Tensor, right_tq: Tensor, power: int) -> None:
    """Add |Lᵀ R|ᵖ to `total` [p, q], for the powers 1 and 2."""
    if power == 1:
        total.add_(abs_product(left_tp, right_tq))
    else:
        gradient = product(left_tp, right_tq)
        total.addcmul_(gradient, gradient)


def _fused(left_tp: Tensor, right_tq: Tensor, function: str, numbers: list[float]) -> Tensor:
    found = torch.ops.mkldnn._linear_pointwise(left_tp.T, right_tq.T, None, function, numbers, "")
    return cast(Tensor, found)


def _suits(tensor: Tensor) -> bool:
    on_cpu = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return on_cpu and len(tensor) > 0 and bool(torch.backends.mkldnn.enabled) and _works()


@cache
def _works() -> bool:
    """Whether oneDNN is there and gives what is expected of it."""
    if not torch.backends.mkldnn.is_available():
        return False
    left = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    right = torch.tensor([[-1.0, 2.0, 4.0], [2.0, -8.0, 1.0]])
    try:
        plain, absolute = (
            _fused(left, right, "none", []),
            _fused(left, right, "leaky_relu", [-1.0]),
        )
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = left.T @ right
    return torch.allclose(plain, expected) and torch.allclose(absolute, expected.abs())
