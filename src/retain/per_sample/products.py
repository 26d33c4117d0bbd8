"""Σₖ|Lₖᵀ Rₖ|ᵖ of one sample after another: the products in which most of the time is spent."""

from __future__ import annotations

import torch
from torch import Tensor


class PowersOfProducts:
    """Adds |Lᵀ R|ᵖ to a sum [p, q], for the powers 1 and 2.

    Each product is written over the one before, so that it is raised and added while it is still
    in the cache, and no new memory has to be found for it.
    """

    def __init__(self, total_pq: Tensor, power: int) -> None:
        self._total, self._power = total_pq, power
        self._product = torch.empty_like(total_pq, memory_format=torch.contiguous_format)

    def add(self, left_tp: Tensor, right_tq: Tensor) -> None:
        """Add |Lᵀ R|ᵖ of one sample's t positions."""
        gradient = torch.mm(left_tp.T, right_tq, out=self._product)
        if self._power == 1:
            self._total.add_(gradient.abs_())
        else:
            self._total.addcmul_(gradient, gradient)
