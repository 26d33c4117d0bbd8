"""The penalty as a term of a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from retain.errors import StateError
from retain.parameters import summed_in
from retain.penalty.hold import Hold, Number, on_host
from retain.penalty.many import Chunks, add_gradients, values


class PenaltyChunks:
    """Which parameters go together, for whoever computes the penalty again and again."""

    def __init__(self) -> None:
        self.forward, self.backward = Chunks(), Chunks()


class Penalty(torch.autograd.Function):
    """scale · Σ Ω (θ − θ*)² over many parameters, differentiable in θ, also twice."""

    @staticmethod
    def forward(
        ctx: Any,
        holds: Sequence[Sequence[Hold]],
        scale: float,
        used: Callable[[Number], None],
        chunks: PenaltyChunks,
        *thetas: Tensor,
    ) -> Tensor:
        """The value; `used` is told the weight with which the penalty enters a gradient."""
        ctx.save_for_backward(*thetas)
        ctx.holds, ctx.scale, ctx.used, ctx.chunks = holds, scale, used, chunks
        found = values(thetas, holds, chunks=chunks.forward)
        dtype = max((one.dtype for one in found), key=lambda kind: kind.itemsize)
        total = torch.stack([one.to(thetas[0].device, dtype) for one in found]).sum()
        return total * scale

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Weight · scale · 2Ω (θ − θ*) for every parameter that wants a gradient."""
        weight = on_host(incoming)
        saved = _saved(ctx)
        ctx.used(weight)
        wanted = [i for i, want in enumerate(ctx.needs_input_grad[4:]) if want]
        if torch.is_grad_enabled():  # create_graph=True: in operations that autograd sees
            return None, None, None, None, *_differentiable(ctx, incoming, wanted)
        thetas = [saved[i] for i in wanted]
        found = add_gradients(
            [None] * len(wanted),
            thetas,
            [ctx.holds[i] for i in wanted],
            weight * ctx.scale,
            chunks=ctx.chunks.backward,
        )
        gradients: list[Tensor | None] = [None] * len(saved)
        for i, gradient in zip(wanted, found, strict=True):
            gradients[i] = gradient
        return None, None, None, None, *gradients


def _differentiable(ctx: Any, incoming: Tensor, wanted: Sequence[int]) -> list[Tensor | None]:
    """The gradients, once more differentiable in θ and in what comes in."""
    thetas = _saved(ctx)
    gradients: list[Tensor | None] = [None] * len(thetas)
    for i in wanted:
        theta = thetas[i]
        pull = torch.zeros_like(theta, dtype=summed_in(theta.dtype))
        for hold in ctx.holds[i]:
            # 2 Ω (θ − θ*)
            pull = pull + 2 * hold.whole.to(pull) * (theta.to(pull) - hold.anchor.to(pull))
        gradients[i] = (incoming.to(pull) * ctx.scale * pull).to(theta.dtype)
    return gradients


def _saved(ctx: Any) -> tuple[Tensor, ...]:
    try:
        return tuple(ctx.saved_tensors)
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise StateError(
            "The weights have moved since penalty() was called, so its gradient would be that at "
            "the old weights. Call memory.penalty() again for each loss."
        ) from error
