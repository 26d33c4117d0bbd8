"""Where two truths may differ and both be right: a tie, decided by the last bit.

Where a ReLU's input lies within rounding of zero, or two maxima are equal, two forwards may choose
differently; their gradients then differ by a finite step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from retain.per_sample.graph import Graph
from retain.per_sample.nodes import constants
from retain.per_sample.precision import Precision, narrowest
from retain.per_sample.same import distance, same

TIES = 0.3  # of a gradient's norm: ties have never been seen to change more, of many units


def disagreeing(
    found: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    precision: Precision,
    power: int = 1,
    *,
    ties: bool = False,
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


def only_ties(together: Graph, alone: Iterable[Graph], hooked: Iterable[str]) -> bool:
    """Whether nothing in a graph could make a backward depend on the other samples of a batch.

    No user's own backward, no gradient divided by frequency, no hook, and the same operations with
    the same constants however many samples there are.
    """
    if any(hooked) or together.has_functions:
        return False
    own = [constants(node) for node in together.order]
    if any(("scale_grad_by_freq", True) in each for each in own):
        return False
    return all(
        graph.wiring == together.wiring and [constants(node) for node in graph.order] == own
        for graph in alone
    )
