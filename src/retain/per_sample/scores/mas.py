"""Memory Aware Synapses: what the paper differentiates, and two ways in which others differ."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.samples.batches import Batch


class SquaredNorm:
    """sₖ = ‖F(xₖ)‖₂², the paper's (MAS, eq. 2): one backward pass for all outputs."""

    def target(self, output: Tensor, batch: Batch) -> None:
        """Nothing: no label is ever used."""

    def __call__(self, output: Tensor, target: Tensor | None = None) -> Tensor:
        """[n]: the squared ℓ2 norm of each sample's output, in whatever order its numbers lie.

        Differentiated by one of its two equal factors, and that twice: so its backward is one pass
        over the output, that of a square takes three.
        """
        # the gradient lies as the numbers do only if they are contiguous, in whatever order
        order = list(range(output.ndim))
        if not output.is_contiguous():
            order.sort(key=output.stride, reverse=True)
            output = output.permute(order)
        squares = output * output.detach()
        over = [at for at, dim in enumerate(order) if dim != 0]
        norms = squares.sum(over) if over else squares
        # ‖F‖² + 0, of which the gradient is F + F
        return norms + (norms - norms.detach())


class Norm:
    """sₖ = ‖F(xₖ)‖₂, not squared, as some public code has it; for comparison with it."""

    def target(self, output: Tensor, batch: Batch) -> None:
        """Nothing: no label is ever used."""

    def __call__(self, output: Tensor, target: Tensor | None = None) -> Tensor:
        """[n]: the ℓ2 norm of each sample's output; its gradient is 0 where the output is 0."""
        norms: Tensor = torch.linalg.vector_norm(output.reshape(len(output), -1), dim=1)
        return norms


class EachOutput:
    """s_dₖ = F_d(xₖ) for every output d: the "vector" form, Ω = 1/N Σₖ Σ_d |∂F_d(xₖ)/∂θ|."""

    def target(self, output: Tensor, batch: Batch) -> None:
        """Nothing: no label is ever used."""

    def __call__(self, output: Tensor, target: Tensor | None = None) -> Tensor:
        """[d, n]: one row, and one backward pass, per output."""
        return output.reshape(len(output), -1).T
