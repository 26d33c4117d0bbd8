"""The self-check: sums over two of a few samples against the gradient of each of them alone.

Of the first and the last, with those between beside them, of which nothing may come in. Each is
computed all alone: sums that agree with that are right. Where they differ by more than rounding,
the truth is the backward of each score alone through the *same* graph, so that both saw the same
activations: where a ReLU's input lies within rounding of zero, two forwards may choose differently,
and their gradients then differ by a finite step although both are right. So a difference from the
sample alone means that either such a tie was met, or a backward depends on the rest of the batch
although the forward does not (an embedding that divides by how often a token came, a step size
divided by the number of elements). A graph in which the second can be excluded is believed; in any
other, the sample alone is right. Outputs are compared for each of the few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from retain.errors import RetainError
from retain.per_sample.backward import PerSampleBackward
from retain.per_sample.blame import BROKEN
from retain.per_sample.fallback import DIFFERS
from retain.per_sample.graph import Graph
from retain.per_sample.halving import shortage
from retain.per_sample.hooks import hooked
from retain.per_sample.interaction import Company
from retain.per_sample.passes import only_the_outer, score_weights
from retain.per_sample.switches import repeatable
from retain.per_sample.tally import Tally
from retain.per_sample.ties import disagreeing, only_ties
from retain.per_sample.truth import ROWS, Truth
from retain.per_sample.underflow import look_for_underflow
from retain.samples.batches import Batch


class SelfCheck:
    """Compares, once for every kind of graph, what was found with what single samples give."""

    def __init__(self, truth: Truth, tally: Tally, company: Company) -> None:
        self._truth, self._tally, self._company = truth, tally, company
        # kinds of graph: those that were checked, and those whose model was called twice
        self._checked: set[frozenset[str]] = set()
        self._repeated: set[frozenset[str]] = set()

    @property
    def begun(self) -> bool:
        """Whether anything was checked already."""
        return bool(self._checked)

    def due(self, graph: Graph) -> bool:
        """Whether this is a new kind of graph."""
        return graph.operations not in self._checked

    def forget(self, graph: Graph) -> None:
        """Check this kind of graph once more: where all was zero, there was nothing to compare."""
        self._checked.discard(graph.operations)

    def of_few(self, backward: PerSampleBackward, few: Batch, target: Tensor | None) -> None:
        """Have the parameters looped over whose sums, of a few samples, are not the truth.

        Raises:
            ModelError: a sample has another output alone than together with others.
        """
        graph, tally, truth = backward.graph, self._tally, self._truth
        # one more between them would tell nothing new, at the price of a pass of its own
        rows = only_the_outer(score_weights(graph)[:ROWS])
        with repeatable():
            tally.fill(backward, rows, keep=True)
        tally.follow_side_doors()
        beside = tally.looped.keys() | backward.plan.inseparable
        sums = {name: one.result() for name, one in tally.sums.items() if name not in beside}
        for name in self._wrong(graph, rows, few, target, sums):
            tally.looped[name] = f"{DIFFERS} (by way of: {tally.routes[name]})"
        tally.follow_side_doors()
        look_for_underflow(graph, rows, sums, truth, lambda: truth.forward(few, target)[0])
        self._checked.add(graph.operations)

    def of_one(self, graph: Graph, batch: Batch, target: Tensor | None) -> None:
        """Look at a batch of one sample: it has nothing to be compared with but itself.

        Raises:
            ModelError: it has another output the next time.
        """
        if graph.operations in self._repeated:
            self._company.refuse_luck(batch, graph.output, graph.precision)
            return
        sums = {name: one.total for name, one in self._tally.sums.items() if not one.empty}
        rows, truth = score_weights(graph), self._truth
        look_for_underflow(graph, rows, sums, truth, lambda: truth.forward(batch, target)[0])
        self._company.refuse_chance(batch, graph.output, graph.precision)
        self._repeated.add(graph.operations)

    def of_outputs(self, graph: Graph, batch: Batch) -> None:
        """Look at the outputs of a whole batch.

        Raises:
            ModelError: a sample has another output alone, or the next time.
        """
        self._company.look(batch, graph.output, graph.precision)
        self._company.refuse_luck(batch, graph.output, graph.precision)

    def _wrong(
        self,
        graph: Graph,
        rows: Sequence[Tensor],
        few: Batch,
        target: Tensor | None,
        sums: Mapping[str, Tensor],
    ) -> set[str]:
        """The parameters whose `sums` are wrong."""
        precision, power = graph.precision, self._tally.power
        try:
            truth, outputs = self._truth.alone(few, target, rows, sums)
        except RetainError:
            raise
        except BROKEN as error:
            if shortage(error):
                raise
            self._company.refuse_few(few, graph.output, None, precision)
            raise
        self._company.refuse_few(few, graph.output, outputs, precision)
        doubtful = disagreeing(sums, truth, precision, power)
        if not doubtful:
            return set()
        wrong = doubtful
        if only_ties(graph, self._truth.graphs(few, target), hooked(self._tally.parameters)):
            wrong = disagreeing(sums, truth, precision, power, ties=True)
        return wrong | disagreeing(
            sums, truth | self._truth.in_graph(graph, rows, doubtful), precision, power
        )
