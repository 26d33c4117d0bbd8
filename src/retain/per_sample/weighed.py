"""Products of parameters, W = A ∘ b: their gradients out of those of W, without n × P memory.

Shapes: n samples, m of them taken together, t positions, W seen as p × q. ∂s/∂b = A ∘ (Lₖᵀ Rₖ),
summed over the dimensions along which b was broadcast. Of those that belong to R that is a product
of A and R first, [i, t, g] · [i, g, p], where i dimensions of q are kept and g are summed; what
meets L then is smaller than W by as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from retain.parameters import summed_in
from retain.per_sample import devices
from retain.per_sample.contributions import Factors
from retain.per_sample.sums import Sum
from retain.pieces import BLOCK, together


@dataclass(eq=False)
class Weighed:
    """gₖ = F ∘ Lₖᵀ Rₖ, summed over the dimensions along which `shape` is 1 and F is not.

    The first dimensions of F, `split` in number, are those of L, the others those of R.
    """

    factors: Factors
    weights: Tensor
    split: int
    shape: torch.Size
    route: str

    @classmethod
    def of(cls, factors: Factors, weights: Tensor, shape: torch.Size) -> Weighed | None:
        """Of the gradients that factors make; None if no dimensions of `weights` are theirs."""
        p, q = factors.shape
        full = torch.Size([1] * (weights.ndim - len(shape)) + list(shape))
        for split in range(weights.ndim + 1):
            if (weights.shape[:split].numel(), weights.shape[split:].numel()) != (p, q):
                continue
            found = cls(factors, weights, split, full, factors.route)
            if full[:split].numel() > 1 or full[split:] != weights.shape[split:]:
                return found
            # all that is summed over belongs to L: the other way round, it belongs to R
            around = weights.movedim(tuple(range(split)), tuple(range(-split, 0)))
            behind = torch.Size([*full[split:], *full[:split]])
            return cls(factors.transposed, around, weights.ndim - split, behind, factors.route)
        return None

    @property
    def summed(self) -> bool:
        """Whether anything is summed over: otherwise gₖ is as large as the weight."""
        return self.shape != self.weights.shape

    def add_samples(self, start: int, stop: int, out: Tensor) -> None:
        """Add gₖ to `out` [m, …]."""
        out.view(stop - start, *self.shape).add_(self.gradients(start, stop))

    def gradients(self, start: int, stop: int) -> Tensor:
        """gₖ [m, *shape] of some samples."""
        if self._in_full:
            left, right = (side[start:stop] for side in self._sides)
            found = torch.bmm(left.mT, right).view(-1, *self.weights.shape).mul_(self.weights)
            over = [1 + d for d in range(self.weights.ndim) if self._is_summed(d)]
        else:
            found = self._contracted(start, stop).permute(1, 2, 0)  # views, to the sum over samples
            of_left, of_right = self.weights.shape[: self.split], self.shape[self.split :]
            found = found.unflatten(2, of_right) if of_right else found.squeeze(2)
            found = found.unflatten(1, of_left) if of_left else found.squeeze(1)
            over = [1 + d for d in range(self.split) if self._is_summed(d)]
        return found.sum(over, keepdim=True) if over else found

    def add_to(self, total: Sum) -> None:
        """Add Σₖ|gₖ|ᵖ, of as many samples at a time as fit together."""
        n, held = len(self._sides[0]), devices.room(self.weights.device) or BLOCK
        each = together(n, self._numbers, held)
        for start in range(0, n, each):
            gradients = self.gradients(start, min(n, start + each)).to(total.total.dtype)
            total.add(total.over_samples_(gradients).reshape(total.total.shape))

    def _is_summed(self, dim: int) -> bool:
        return self.shape[dim] == 1 != self.weights.shape[dim]

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        left, right = self.factors.positions
        wide = summed_in(self.weights.dtype)
        return left.to(wide), right.to(wide)

    @cached_property
    def _of_right(self) -> tuple[list[int], list[int]]:
        """The dimensions that are R's: those that are kept, and those that are summed over."""
        dims = range(self.split, self.weights.ndim)
        return (
            [d for d in dims if not self._is_summed(d)],
            [d for d in dims if self._is_summed(d)],
        )

    def _size(self, dims: list[int]) -> int:
        return math.prod(self.weights.shape[d] for d in dims)

    @property
    def _in_full(self) -> bool:
        """Whether to make Lₖᵀ Rₖ first: with more positions than are summed over, it is smaller."""
        return self._sides[0].shape[1] > self._size(self._of_right[1])

    @property
    def _numbers(self) -> int:
        """How many a sample needs in between."""
        _, t, p = self._sides[0].shape
        return self.weights.numel() if self._in_full else t * p * self._size(self._of_right[0])

    @cached_property
    def _to_contract(self) -> tuple[Tensor, Tensor]:
        """R [i, n, t, g] and F [i, g, p]."""
        kept, summed = self._of_right
        right_ntq = self._sides[1]
        by_dim = right_ntq.unflatten(2, self.weights.shape[self.split :])
        first, last = ([2 + d - self.split for d in dims] for dims in (kept, summed))
        i = self._size(kept)
        rows = by_dim.permute(*first, 0, 1, *last).reshape(i, *right_ntq.shape[:2], -1)
        weights = self.weights.permute(*kept, *summed, *range(self.split))
        return rows, weights.to(rows.dtype).reshape(i, rows.shape[3], -1)

    def _contracted(self, start: int, stop: int) -> Tensor:
        """Σ_t Lₖ[t, p] Σ_g Rₖ[t, i, g] F[p, i, g], as [i, m, p]."""
        rows_intg, weights_igp = self._to_contract
        chosen = rows_intg[:, start:stop]
        held_imtp = torch.bmm(chosen.flatten(1, 2), weights_igp).view(*chosen.shape[:3], -1)
        held_imtp.mul_(self._sides[0][start:stop])
        return held_imtp.squeeze(2) if chosen.shape[2] == 1 else held_imtp.sum(2)
