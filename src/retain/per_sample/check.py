"""The self-check: sums of a few samples against the gradient of each sample alone.

The truth is the backward of each score alone through the *same* graph, so that both saw the same
activations: where a ReLU's input lies within rounding of zero, two forwards may choose differently,
and their gradients then differ by a finite step although both are right. Each sample is also
computed all alone. Where that differs by more than rounding, either such a tie was met, or a
backward depends on the rest of the batch although the forward does not (an embedding that divides
by how often a token came, a step size divided by the number of elements). A graph in which the
second can be excluded is believed; in any other, the sample alone is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from retain.errors import RetainError
from retain.per_sample.graph import Graph
from retain.per_sample.halving import shortage
from retain.per_sample.hooks import hooked
from retain.per_sample.interaction import Company
from retain.per_sample.nodes import constants, is_custom
from retain.per_sample.precision import Precision, narrowest
from retain.per_sample.reference import add_powers, gradients_of
from retain.per_sample.same import distance, same
from retain.samples.batches import Batch

ROWS = 2  # of several scores per sample, so many are looked at: not a thousand outputs
TIES = 0.3  # of a gradient's norm: ties have never been seen to change more, of many units

Sums = Mapping[str, Tensor]
Forward = Callable[..., tuple[Graph, Tensor | None]]


class SelfCheck:
    """Compares the sums of a few samples with what each of them gives by itself."""

    def __init__(self, parameters: Sums, power: int, forward: Forward, company: Company) -> None:
        self.parameters, self.power = parameters, power
        self.forward, self.company = forward, company

    def wrong(
        self, graph: Graph, rows: Sequence[Tensor], few: Batch, target: Tensor | None, sums: Sums
    ) -> set[str]:
        """The parameters whose `sums` are wrong.

        Raises:
            ModelError: a sample has another output alone than together with others.
        """
        precision = graph.precision
        truth: dict[str, Tensor] = {}
        for row in rows:
            for k in range(few.samples):
                only = torch.zeros_like(row)
                only[..., k] = row[..., k]
                add_powers(truth, gradients_of(graph, only, self.parameters), self.power)
        wrong = disagreeing(sums, _of(truth, sums), precision, self.power)
        truth, alone = {}, []
        try:
            for k in range(few.samples):
                cut = None if target is None else target[k : k + 1]
                own, _ = self.forward(few.take(k, k + 1), cut, whatever=True)
                for row in own.rows()[:ROWS]:
                    add_powers(truth, gradients_of(own, row, self.parameters), self.power)
                alone.append(own)
        except RetainError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            if shortage(error):
                raise
            self.company.refuse_few(few, graph.output, None, precision)
        self.company.refuse_few(few, graph.output, [own.output for own in alone], precision)
        own_truth = _of(truth, sums)
        doubtful = disagreeing(sums, own_truth, precision, self.power)
        if doubtful:
            ties = only_ties(graph, alone, hooked(self.parameters))
            wrong |= disagreeing(sums, own_truth, precision, self.power, ties=ties)
        return wrong


def _of(found: Sums, wanted: Sums) -> dict[str, Tensor]:
    """Zeros where a parameter had no gradient at all."""
    return {
        name: found[name] if name in found else torch.zeros_like(value)
        for name, value in wanted.items()
    }


def disagreeing(
    found: Sums, truth: Sums, precision: Precision, power: int = 1, *, ties: bool = False
) -> set[str]:
    """The parameters whose sums differ from the truth by more than rounding, or ties, explain."""
    largest = max((float(value.norm()) for value in truth.values()), default=0.0)
    wrong = set()
    for name, value in truth.items():
        kind = Precision(narrowest(precision.dtype, found[name].dtype, value.dtype))
        floor = largest * kind.zero**power
        if same(found[name], value, kind, floor):
            continue
        size = max(float(value.norm()), float(found[name].norm()))
        if not ties or not distance(found[name], value) <= tied(value) * power * size:
            wrong.add(name)
    return wrong


def tied(gradient: Tensor) -> float:
    """How much of a gradient ties may change: of those of few units a single one changes much."""
    units = len(gradient) if gradient.ndim else 1
    return max(TIES, min(1.0, 3 / math.sqrt(units)))


def only_ties(together: Graph, alone: Sequence[Graph], hooked: Iterable[str]) -> bool:
    """Whether nothing in a graph could make a backward depend on the other samples of a batch.

    No user's own backward, no gradient divided by frequency, no hook, and the same operations with
    the same constants however many samples there are.
    """
    if any(hooked) or any(map(is_custom, together.order)):
        return False
    own = [constants(node) for node in together.order]
    if any(("scale_grad_by_freq", True) in each for each in own):
        return False
    return all(
        graph.wiring == together.wiring and [constants(node) for node in graph.order] == own
        for graph in alone
    )
