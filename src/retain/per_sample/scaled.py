"""Half precision: scores are multiplied by a power of two, so that gradients fit its range."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from retain.per_sample.graph import Graph
from retain.per_sample.passes import gradients_at
from retain.per_sample.scores import Score
from retain.per_sample.sums import Sum
from retain.samples.batches import Batch

HIGHEST, LOWEST, STEP = 20, -28, 4  # exponents that are tried
ROOM = 2  # what is left for batches with larger gradients than the first
TRIES = 3  # how often a batch that overflows is tried again


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
        self._settled = True
        ends = [(leaf, 0) for leaf in graph.leaves.values()]
        most = graph.precision.exponents - 1  # by which probing multiplies
        for exponent in range(HIGHEST, LOWEST, -STEP):
            weights = torch.full_like(graph.scores, 2.0 ** (exponent + most))
            found = [g for g in gradients_at(graph, weights, ends) if g is not None]
            if all(
                bool((g.coalesce().values() if g.is_sparse else g).isfinite().all()) for g in found
            ):
                break
        self._exponent = exponent - ROOM
        return True

    def lower(self) -> bool:
        """Whether a smaller power of two is there to be tried."""
        if not self._settled or self._exponent - 2 * STEP < LOWEST:
            return False
        self._exponent -= 2 * STEP
        return True

    def undo(self, sums: Iterable[Sum]) -> None:
        """Σₖ|gₖ|ᵖ from Σₖ|2^e gₖ|ᵖ."""
        if self._exponent:
            for one in sums:
                if not one.empty:
                    one.total.mul_(2.0 ** (-self._exponent * self._power))
