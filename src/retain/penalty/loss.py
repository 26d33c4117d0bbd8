"""The penalty as a term of a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retain.errors import StateError
from retain.penalty.many import add_gradients, values
from retain.penalty.quadratic import Hold, Number, on_host


class Penalty(torch.autograd.Function):
    """scale · Σ Ω (θ − θ*)² over many parameters, differentiable once in θ."""

    @staticmethod
    def forward(
        ctx: Any,
        holds: Sequence[Sequence[Hold]],
        scale: float,
        used: Callable[[Number], None],
        *thetas: Tensor,
    ) -> Tensor:
        """The value; `used` is told the weight with which the penalty enters a gradient."""
        ctx.save_for_backward(*thetas)
        ctx.holds, ctx.scale, ctx.used = holds, scale, used
        found = values(thetas, holds)
        dtype = max((one.dtype for one in found), key=lambda kind: kind.itemsize)
        total = torch.stack([one.to(thetas[0].device, dtype) for one in found]).sum()
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Weight · scale · 2Ω (θ − θ*) for every parameter that wants a gradient."""
        weight = on_host(incoming)
        saved = _saved(ctx)
        ctx.used(weight)
        wanted = [i for i, want in enumerate(ctx.needs_input_grad[3:]) if want]
        thetas = [saved[i] for i in wanted]
        found = add_gradients(
            [None] * len(wanted), thetas, [ctx.holds[i] for i in wanted], weight * ctx.scale
        )
        gradients: list[Tensor | None] = [None] * len(saved)
        for i, gradient in zip(wanted, found, strict=True):
            gradients[i] = gradient
        return None, None, None, *gradients


def _saved(ctx: Any) -> tuple[Tensor, ...]:
    try:
        return tuple(ctx.saved_tensors)
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise StateError(
            "The weights have moved since penalty() was called, so that its gradient would be of "
            "weights that are gone. Call memory.penalty() anew for each loss."
        ) from error
