"""The precision in which Ω was computed, in words: what the operations of a graph really ran in.

Types are read off the graph. How far float32 operands are rounded on the way into a product (TF32,
bfloat16) no type tells, and switches only allow it: what a device makes of them is measured, with
numbers whose last bits such rounding loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from retain.per_sample.graph import Graph
from retain.per_sample.switches import settings, without_autocast

PRODUCTS = ("Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Addmv", "ScaledDotProduct")
CONVOLUTIONS = ("Convolution", "CudnnConvolution", "MkldnnConvolution", "SlowConv", "Conv")
NOTICED = {"bfloat16": 2.0**-9, "TF32": 2.0**-12}  # beside 1: with 7 bits of mantissa, with 10
SIZE = 64  # rows of the matrices that are multiplied: small ones may take another way
CHANNELS = 32


# A kind of operation, where it runs, and how the switches stand.
Circumstances = tuple[str, torch.device, object]


class Stated:
    """Says it of one graph after another; what was measured is kept while nobody moves a switch."""

    def __init__(self) -> None:
        self._measured: dict[Circumstances, str] = {}
        self._said: dict[object, str] = {}  # of graphs wired in one way, as the switches stood

    def of(self, graph: Graph, types: Iterable[torch.dtype]) -> str:
        """Such as "float64", "float32 (TF32 convolutions)" or "bfloat16 autocast".

        `types` are those of the parameters in the graph.
        """
        narrow = graph.precision.dtype
        name = str(narrow).removeprefix("torch.")
        if all(narrow.itemsize < dtype.itemsize for dtype in types):
            return f"{name} autocast"
        if narrow != torch.float32:
            return name
        device, now = graph.scores.device, settings()
        about = (graph.wiring, device, now)
        if about not in self._said:
            kinds: dict[str, list[str]] = {}
            for kind, (operations, product) in _KINDS.items():
                if any(one.startswith(operations) for one in graph.operations):
                    rounding = self._rounding((kind, device, now), product)
                    kinds.setdefault(rounding, []).append(kind)
            said = [f"{to} {' and '.join(some)}" for to, some in kinds.items() if to]
            self._said[about] = f"{name} ({', '.join(said)})" if said else name
        return self._said[about]

    def _rounding(self, about: Circumstances, product: Callable[[Tensor], Tensor]) -> str:
        if about not in self._measured:
            self._measured[about] = _rounding(product, about[1])
        return self._measured[about]


def _rounding(product: Callable[[Tensor], Tensor], device: torch.device) -> str:
    """To what a product with ones rounds its operands; "" if to nothing."""
    with torch.no_grad(), without_autocast():
        for name, little in NOTICED.items():
            operand = torch.full((SIZE,), 1 + little, device=device)
            if bool(((product(operand) - 1).abs() < little / 4).all()):
                return name
    return ""


def _of_matrices(operand_n: Tensor) -> Tensor:
    return (torch.diag(operand_n) @ torch.eye(len(operand_n), device=operand_n.device)).diagonal()


def _of_images(operand_n: Tensor) -> Tensor:
    images = operand_n.view(1, 1, -1, 1).expand(2, CHANNELS, -1, 8).contiguous()
    kernels = torch.zeros(CHANNELS, CHANNELS, 3, 3, device=operand_n.device)
    kernels[:, :, 1, 1] = torch.eye(CHANNELS, device=operand_n.device)
    return F.conv2d(images, kernels, padding=1)


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[Tensor], Tensor]]] = {
    "convolutions": (CONVOLUTIONS, _of_images),
    "products": (PRODUCTS, _of_matrices),
}
