"""The self-check: sums of a few samples against the gradient of each sample alone.

Each sample is computed all alone: sums that agree with that are right. Where they differ by more
than rounding, the truth is the backward of each score alone through the *same* graph, so that both
saw the same activations: where a ReLU's input lies within rounding of zero, two forwards may choose
differently, and their gradients then differ by a finite step although both are right. So a
difference from the sample alone means that either such a tie was met, or a backward depends on the
rest of the batch although the forward does not (an embedding that divides by how often a token
came, a step size divided by the number of elements). A graph in which the second can be excluded is
believed; in any other, the sample alone is right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from retain.errors import RetainError
from retain.per_sample.blame import BROKEN
from retain.per_sample.graph import Graph
from retain.per_sample.halving import shortage
from retain.per_sample.hooks import hooked
from retain.per_sample.interaction import Company
from retain.per_sample.passes import one_by_one, score_weights
from retain.per_sample.reference import add_powers, gradients_of
from retain.per_sample.switches import repeatable
from retain.per_sample.ties import disagreeing, only_ties
from retain.samples.batches import Batch

ROWS = 2  # of several scores per sample, so many are looked at: not a thousand outputs

GraphForward = Callable[..., tuple[Graph, Tensor | None]]


class SelfCheck:
    """Compares the sums of a few samples with what each of them gives by itself."""

    def __init__(
        self, parameters: Mapping[str, Tensor], power: int, forward: GraphForward, company: Company
    ) -> None:
        self.parameters, self.power = parameters, power
        self.forward, self.company = forward, company

    def wrong(
        self,
        graph: Graph,
        rows: Sequence[Tensor],
        few: Batch,
        target: Tensor | None,
        sums: Mapping[str, Tensor],
    ) -> set[str]:
        """The parameters whose `sums` are wrong.

        Raises:
            ModelError: a sample has another output alone than together with others.
        """
        precision = graph.precision
        truth: dict[str, Tensor] = {}
        outputs = []
        try:
            for own in self._alone(few, target):  # one graph after another
                for row in score_weights(own)[:ROWS]:
                    self._add(truth, own, row, sums)
                outputs.append(own.output)
        except RetainError:
            raise
        except BROKEN as error:
            if shortage(error):
                raise
            self.company.refuse_few(few, graph.output, None, precision)
        self.company.refuse_few(few, graph.output, outputs, precision)
        truth = _of(truth, sums)
        doubtful = disagreeing(sums, truth, precision, self.power)
        if not doubtful:
            return set()
        alone = self._alone(few, target)
        wrong = doubtful
        if only_ties(graph, alone, hooked(self.parameters)):
            wrong = disagreeing(sums, truth, precision, self.power, ties=True)
        return wrong | disagreeing(
            sums, truth | self._together(graph, rows, doubtful), precision, self.power
        )

    def _alone(self, few: Batch, target: Tensor | None) -> Iterator[Graph]:
        """The graph of each sample alone."""
        for k in range(few.samples):
            cut = None if target is None else target[k : k + 1]
            yield self.forward(few.take(k, k + 1), cut, whatever=True)[0]

    def _together(
        self, graph: Graph, rows: Sequence[Tensor], names: Collection[str]
    ) -> dict[str, Tensor]:
        """The truth for these parameters, of each score alone through the graph of all samples."""
        truth: dict[str, Tensor] = {}
        for only in one_by_one(rows, graph.scores.shape[-1]):
            self._add(truth, graph, only, names)
        return _of(truth, {name: self.parameters[name] for name in names})

    def _add(
        self, truth: dict[str, Tensor], graph: Graph, weights: Tensor, names: Collection[str]
    ) -> None:
        with repeatable():
            found = gradients_of(graph, weights, self.parameters)
        add_powers(truth, {name: g for name, g in found.items() if name in names}, self.power)


def _of(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros where a parameter had no gradient at all."""
    return {
        name: found[name] if name in found else torch.zeros_like(value)
        for name, value in wanted.items()
    }
