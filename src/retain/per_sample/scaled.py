"""Half precision: scores are multiplied by a power of two, so that gradients fit its range."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from retain.per_sample.graph import Graph
from retain.per_sample.passes import gradients_at, over_all_scores
from retain.per_sample.scores import Score
from retain.per_sample.sums import Sum
from retain.samples.batches import Batch

HIGHEST, LOWEST = 60, -28  # exponents that are tried
ROOM = 2  # what is left for batches with larger gradients than the first
STEP = 8  # by which a batch that overflows all the same lowers it


class Scaled:
    """2^e · s: another score, larger or smaller by a power of two."""

    def __init__(self, score: Score, exponent: int) -> None:
        self._score, self._factor = score, 2.0**exponent

    def target(self, output: Tensor, batch: Batch) -> Tensor | None:
        """As the other score's."""
        return self._score.target(output, batch)

    def __call__(self, output: Tensor, target: Tensor | None) -> Tensor:
        """[n] or [scores, n]."""
        return self._score(output, target) * self._factor


class Exponent:
    """The power of two, 2^e: as large as no gradient overflows, so that the fewest underflow."""

    def __init__(self, power: int) -> None:
        self._power = power
        self._exponent = 0
        self._settled = False

    def of(self, score: Score) -> Score:
        """The score to differentiate."""
        return Scaled(score, self._exponent) if self._exponent else score

    def settle(self, graph: Graph) -> bool:
        """Whether the exponent was chosen now, from the gradients in this graph."""
        if self._settled or graph.precision.dtype != torch.float16:
            return False
        most = graph.precision.exponents - 1  # by which probing multiplies
        # what overflows does so with every larger exponent too
        low, high = LOWEST, HIGHEST
        largest = 0.0
        while low < high:
            middle = (low + high + 1) // 2
            largest = _largest(graph, middle + most)
            if largest < torch.inf:
                low = middle
            else:
                high = middle - 1
        if low == HIGHEST and not largest:
            return False  # all gradients are zero, which says nothing about later ones
        self._settled = True
        self._exponent = low - ROOM
        return True

    def lower(self) -> bool:
        """Whether a smaller power of two is there to be tried."""
        if not self._settled or self._exponent - STEP < LOWEST:
            return False
        self._exponent -= STEP
        return True

    def undo(self, sums: Iterable[Sum]) -> None:
        """Σₖ|gₖ|ᵖ from Σₖ|2^e gₖ|ᵖ."""
        if self._exponent:
            for one in sums:
                if not one.empty:
                    one.total.mul_(2.0 ** (-self._exponent * self._power))


def _largest(graph: Graph, exponent: int) -> float:
    """The largest size of any element of a gradient of Σ 2^e s; infinity where it overflows."""
    weights = over_all_scores(graph, graph.scores.new_full(graph.scores.shape[-1:], 2.0**exponent))
    found = gradients_at(graph, weights, [(leaf, 0) for leaf in graph.leaves.values()])
    dense = (g.coalesce().values() if g.is_sparse else g for g in found if g is not None)
    sizes = [float(g.abs().max()) for g in dense if g.numel()]
    return max((size if math.isfinite(size) else math.inf for size in sizes), default=0.0)
