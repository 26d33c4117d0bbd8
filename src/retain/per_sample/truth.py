"""The truth that a few samples are checked against: each by itself, in one of two ways.

All alone, by a forward and backward of its own; or by the backward of its score alone through the
graph of all, so that both saw the same activations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from retain.per_sample.forward import Forward
from retain.per_sample.graph import Graph
from retain.per_sample.passes import one_by_one, score_weights
from retain.per_sample.reference import add_powers, gradients_of
from retain.per_sample.switches import repeatable
from retain.samples.batches import Batch

ROWS = 2  # of several scores per sample, so many are looked at: not a thousand outputs


class Truth:
    """Σₖ|gₖ|ᵖ of a few samples, slowly."""

    def __init__(self, forward: Forward, power: int) -> None:
        self.forward, self.parameters, self.power = forward, forward.parameters, power

    def graphs(self, few: Batch, target: Tensor | None) -> Iterator[Graph]:
        """The graph of each sample alone, of whatever the model gives."""
        for k in range(few.samples):
            cut = None if target is None else target[k : k + 1]
            yield self.forward(few.take(k, k + 1), cut, whatever=True)[0]

    def alone(
        self,
        few: Batch,
        target: Tensor | None,
        rows: Sequence[Tensor],
        wanted: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The sums over samples that are all alone, shaped like `wanted`; and their outputs.

        Of those samples that have a weight in `rows`; the outputs of all.
        """
        sums: dict[str, Tensor] = {}
        outputs = []
        for k, own in enumerate(self.graphs(few, target)):  # one graph after another
            for row, weights in zip(rows, score_weights(own)):
                if row[..., k].any():
                    self._add(sums, own, weights, wanted)
            outputs.append(own.output)
        return _of(sums, wanted), outputs

    def in_graph(
        self, graph: Graph, rows: Sequence[Tensor], names: Collection[str]
    ) -> dict[str, Tensor]:
        """The sums over the scores of each sample that has a weight, through the graph of all."""
        sums: dict[str, Tensor] = {}
        for only in filter(torch.any, one_by_one(rows, graph.scores.shape[-1])):
            self._add(sums, graph, only, names)
        return _of(sums, {name: self.parameters[name] for name in names})

    def _add(
        self, sums: dict[str, Tensor], graph: Graph, weights: Tensor, names: Collection[str]
    ) -> None:
        with repeatable():
            found = gradients_of(graph, weights, self.parameters)
        add_powers(sums, {name: g for name, g in found.items() if name in names}, self.power)


def _of(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros where a parameter had no gradient at all."""
    return {
        name: found[name] if name in found else torch.zeros_like(value, requires_grad=False)
        for name, value in wanted.items()
    }
