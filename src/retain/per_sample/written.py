"""Models that write to weights on which other samples' outputs then depend.

Embeddings that are renormalised when they are looked up, for one: if they are tied to the output,
a sample's logits depend on what the others of its batch looked up. By itself no sample is to blame,
so each is computed alone, from the weights as they are before any forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retain.per_sample.graph import Graph
from retain.per_sample.halving import Sums
from retain.per_sample.lent import weights_aside
from retain.per_sample.same import same
from retain.samples.batches import Batch


def writes_across(
    weights: Sequence[Tensor], batch: Batch, forward: Callable[[Batch], Graph]
) -> bool:
    """Whether what `forward` writes to `weights` for some samples changes the outputs of others."""
    if not weights or batch.samples < 2:
        return False
    last = batch.samples - 1
    graphs = []
    for start, stop in ((0, last + 1), (0, 1), (last, last + 1)):
        with weights_aside(weights):
            graphs.append(forward(batch.take(start, stop)))
    together, first, final = graphs
    alone = torch.cat([first.output, final.output])
    return not same(alone, together.output[[0, last]], together.precision)


def each_from_the_same(
    weights: Sequence[Tensor], batch: Batch, sums_of: Callable[[int], Sums]
) -> Sums:
    """The sums over the samples of `sums_of` each, `weights` being what they were before each."""
    totals: Sums = {}
    for k in range(batch.samples):
        with weights_aside(weights):
            for name, total in sums_of(k).items():
                totals[name] = totals[name] + total if name in totals else total
    return totals
