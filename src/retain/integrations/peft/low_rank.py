"""Σ Ω (W + s L R − θ*)² for weights that move by products of small matrices, as LoRA's do.

Shapes: p × q the weight, r the rank. s L R is made for a few rows at a time and never kept: value,
gradients and steps go through the weight in parts that fit into the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from retain.penalty import LEAST, PART, Hold, Metric, Number

ALMOST_SINGULAR = 1e-12  # of the largest entry: what rounding makes of 0 in double precision

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Factor:
    """A parameter of an adapter, as the matrix that it is in the product."""

    parameter: nn.Parameter
    view: View

    @property
    def matrix(self) -> Tensor:
        """L [p, r] or R [r, q], without gradient."""
        return self.view(self.parameter.detach())

    def put(self, matrix: Tensor) -> None:
        """Let the parameter be `matrix`."""
        target = self.matrix
        target.copy_(matrix)
        whole = self.parameter.detach()
        if target.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            whole.copy_(target.reshape(whole.shape))  # its memory could not be seen as a matrix

    @property
    def transposed(self) -> Factor:
        """The same parameter, as the transposed matrix."""
        return Factor(self.parameter, lambda tensor: self.view(tensor).T)


@dataclass(frozen=True, eq=False)
class Product:
    """s L R [p, q]: what one adapter adds to a weight."""

    left: Factor
    right: Factor
    scale: float

    @property
    def transposed(self) -> Product:
        """The same for the transposed weight: s Rᵀ Lᵀ [q, p]."""
        return Product(self.right.transposed, self.left.transposed, self.scale)

    def rows(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Some rows of s L R [c, q]."""
        return (self.left.matrix[part].to(dtype) @ self.right.matrix.to(dtype)).mul_(self.scale)


@dataclass(frozen=True, eq=False)
class Block:
    """A weight as a matrix: what is added to it, and what holds it.

    Attributes:
        products: what the adapters add.
        holds: Ω and θ* [p, q].
        base: the weight itself [p, q]; None where it is θ*, so that only the adapters move it.
    """

    products: tuple[Product, ...]
    holds: tuple[Hold, ...]
    base: Tensor | None

    @property
    def transposed(self) -> Block:
        """The same, for the transposed weight."""
        return Block(
            tuple(product.transposed for product in self.products),
            tuple(Hold(hold.importance.T, hold.anchor.T, hold.unit) for hold in self.holds),
            None if self.base is None else self.base.T,
        )

    @property
    def device(self) -> torch.device:
        """Where the adapters are, and the arithmetic is done."""
        return self.products[0].left.parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the arithmetic is done: no less than single precision."""
        kinds = {f.parameter.dtype for one in self.products for f in (one.left, one.right)}
        return torch.float64 if torch.float64 in kinds else torch.float32

    def parts(self) -> Iterator[slice]:
        """Rows, as many at a time as fit into the cache."""
        p, q = self.holds[0].importance.shape
        count = max(1, PART // q)
        return (slice(start, min(start + count, p)) for start in range(0, p, count))

    def pulls(self, part: slice, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """(Ω, W + Σ s L R − θ*) for some rows, [c, q] each, and for every hold."""
        delta = torch.zeros((), dtype=dtype, device=self.device)
        for product in self.products:
            delta = delta + product.rows(part, dtype)
        for hold in self.holds:
            moved = delta
            if self.base is not None:
                base, star = (
                    self._here(self.base[part], dtype),
                    self._here(hold.anchor[part], dtype),
                )
                moved = delta + (base - star)
            yield hold.omega(hold.importance[part], delta), moved

    def _here(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(self.device, dtype)


def value(block: Block) -> Tensor:
    """Σ Ω (W + Σ s L R − θ*)², without λ: a scalar."""
    total = torch.zeros((), dtype=block.dtype, device=block.device)
    for part in block.parts():
        for omega, d in block.pulls(part, block.dtype):
            # Ω (W + s L R − θ*)²
            total += (omega * d).mul_(d).sum()
    return total


def gradients(block: Block, scale: float) -> list[tuple[Tensor, Tensor]]:
    """Gradients of scale · `value` with respect to L and R of every product."""
    dtype = block.dtype
    found = [
        (
            torch.empty(one.left.matrix.shape, dtype=dtype, device=block.device),
            torch.zeros(one.right.matrix.shape, dtype=dtype, device=block.device),
        )
        for one in block.products
    ]
    for part in block.parts():
        pull = _pull(block, part, dtype)[1]
        for product, (left, right) in zip(block.products, found, strict=True):
            factor = 2 * scale * product.scale
            # ∂/∂L = 2 s (Ω ∘ d) Rᵀ,   ∂/∂R = 2 s Lᵀ (Ω ∘ d)
            torch.mm(pull, product.right.matrix.to(dtype).T, out=left[part])
            left[part].mul_(factor)
            right.addmm_(product.left.matrix[part].to(dtype).T, pull, alpha=factor)
    return found


def settle(block: Block, index: int, scale: float, metric: Metric | None = None) -> None:
    """Move L of one product, in place, to the minimiser of ½ Σ H (X − L)² + scale · `value`.

    H is 1 without a `metric`. Everything else is held, so that the rows of L are independent: each
    solves r × r equations, exactly, whatever the scale.
    """
    if scale == 0:
        return
    product = block.products[index]
    right = product.right.matrix.double()
    left = product.left.matrix.double()
    rank, q = right.shape
    for rows in block.parts():
        count = max(1, PART // (q * rank))
        for start in range(rows.start, rows.stop, count):
            part = slice(start, min(start + count, rows.stop))
            omega, pull = _pull(block, part, torch.float64)
            floor = _floor(product.left, part, metric, scale)
            # (H/(2·scale) + s² R Ω Rᵀ) x = s (Ω ∘ d) Rᵀ   for every row of L
            system = (omega[:, None, :] * right).matmul(right.T).mul_(product.scale**2)
            diagonal = torch.diagonal(system, dim1=1, dim2=2)
            diagonal += floor + ALMOST_SINGULAR * diagonal.amax(1, keepdim=True)
            wanted = (pull @ right.T).mul_(product.scale)
            root, _failed = torch.linalg.cholesky_ex(system)
            left[part] -= torch.cholesky_solve(wanted[..., None], root)[..., 0]
    product.left.put(left)


def settle_all(
    block: Block,
    scale_of: Callable[[nn.Parameter], tuple[float, Metric | None] | None],
) -> None:
    """`settle` L, then R, of every product, one after the other; None leaves a factor alone."""
    for way in (block, block.transposed):
        for index, product in enumerate(way.products):
            found = scale_of(product.left.parameter)
            if found is not None:
                settle(way, index, *found)


class ProductPenalty(torch.autograd.Function):
    """scale · Σ `value` over many blocks, differentiable once in the factors.

    Nothing as large as a weight is kept from forward to backward, which goes through the blocks
    again, one at a time.
    """

    @staticmethod
    def of(blocks: Sequence[Block], scale: float, used: Callable[[Number], None]) -> Tensor:
        """The value; `used` is told the weight with which the penalty enters a gradient."""
        factors = [f for block in blocks for one in block.products for f in (one.left, one.right)]
        parameters = {id(factor.parameter): factor.parameter for factor in factors}
        given = blocks, scale, used, tuple(parameters)
        total: Tensor = ProductPenalty.apply(*given, *parameters.values())
        return total

    @staticmethod
    def forward(
        ctx: Any,
        blocks: Sequence[Block],
        scale: float,
        used: Callable[[Number], None],
        ids: tuple[int, ...],
        *parameters: Tensor,
    ) -> Tensor:
        """The value."""
        ctx.save_for_backward(*parameters)  # so that autograd sees when they were changed since
        ctx.blocks, ctx.scale, ctx.used, ctx.ids = blocks, scale, used, ids
        first = blocks[0].device
        dtype = max((block.dtype for block in blocks), key=lambda kind: kind.itemsize)
        return torch.stack([value(block).to(first, dtype) for block in blocks]).sum() * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of every parameter that wants one."""
        ctx.saved_tensors  # noqa: B018  (an error, if a factor was changed since)
        weight = float(incoming)
        ctx.used(weight)
        wanted = {which for which, want in zip(ctx.ids, ctx.needs_input_grad[4:]) if want}
        total = summed(ctx.blocks, ctx.scale * weight, wanted)
        return None, None, None, None, *(total.get(which) for which in ctx.ids)


def summed(blocks: Sequence[Block], scale: float, wanted: set[int]) -> dict[int, Tensor]:
    """Id of a parameter → its gradient over all blocks that it is in, in its own shape and type."""
    total: dict[int, Tensor] = {}
    for block in blocks:
        for product, both in zip(block.products, gradients(block, scale), strict=True):
            for factor, gradient in zip((product.left, product.right), both, strict=True):
                p = factor.parameter
                if id(p) not in wanted:
                    continue
                if id(p) not in total:
                    total[id(p)] = torch.zeros_like(p, requires_grad=False)
                view = factor.view(total[id(p)])
                view += gradient.to(view.dtype)
                if view.untyped_storage().data_ptr() != total[id(p)].untyped_storage().data_ptr():
                    total[id(p)].copy_(view.reshape(p.shape))
    return total


def _pull(block: Block, part: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Σ Ω and Σ Ω ∘ (W + s L R − θ*) over the holds, for some rows."""
    both = [(omega, omega * d) for omega, d in block.pulls(part, dtype)]
    weight, pull = both[0]
    for omega, more in both[1:]:
        weight, pull = weight + omega, pull.add_(more)
    return weight, pull


def _floor(factor: Factor, part: slice, metric: Metric | None, scale: float) -> Tensor:
    """H/(2·scale) for some rows of a factor [c, r], or what stands for 1/(2·scale)."""
    if metric is None:
        least, device = max(1 / (2 * scale), LEAST), factor.parameter.device
        return torch.full((), least, dtype=torch.float64, device=device)
    root = factor.view(metric.square)[part].double().sqrt()
    return (root.mul_(metric.factor).add_(metric.offset) / (2 * scale)).clamp_min_(LEAST)
