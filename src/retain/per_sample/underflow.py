"""Gradients below the range of float16: never without a word.

What is smaller than 6e-8 is zero there, and below 6e-5 there are fewer and fewer digits. Scores are
scaled so that the largest gradients just fit; where a network spans a wider range than the type,
the smallest vanish all the same, and the importance with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from retain.per_sample.fallback import some
from retain.per_sample.graph import Graph
from retain.per_sample.passes import gradients_at
from retain.per_sample.same import distance
from retain.per_sample.switches import without_autocast
from retain.per_sample.truth import Truth
from retain.saying import warn

HALF = torch.finfo(torch.float16)
SPACING = HALF.smallest_normal * HALF.eps / 2  # at most: by what rounding moves a small number
COARSE = 0.02  # of a gradient's norm: what rounding of its small numbers may be unnoticed
GONE = 0.1  # of a parameter's sums: rounding of numbers within the range takes 0.03 at most
REMEDY = "Observe without autocast, or in bfloat16, which has the range of float32."


def look_for_underflow(
    graph: Graph,
    rows: Sequence[Tensor],
    sums: Mapping[str, Tensor],
    truth: Truth,
    again: Callable[[], Graph],
) -> None:
    """Warn of gradients in the graph of a few samples that float16 makes nothing of.

    `again` makes the graph once more, which may then be in float32.
    """
    if graph.precision.dtype != torch.float16:
        return
    with without_autocast():
        if not any(_is_coarse(graph, row) for row in rows):
            return
        wide = again()
        narrow = wide.precision.dtype == torch.float16
        _warn(sums, None if narrow else truth.in_graph(wide, rows, sums))


def _is_coarse(graph: Graph, weights: Tensor) -> bool:
    """Whether an output or gradient in a float16 graph is so small as to be rounded away."""
    wanted = [
        (node, output)
        for node in graph.order[:-1]
        for output in graph.outputs(node)
        if node._input_metadata[output].dtype == torch.float16
    ]
    gradients = (g for g in gradients_at(graph, weights, wanted) if g is not None)
    return any(map(_is_small, gradients)) or _is_small(graph.output)


def _is_small(tensor: Tensor) -> bool:
    if tensor.dtype != torch.float16 or not tensor.numel():
        return False
    small = int((tensor.abs() < HALF.smallest_normal).sum())
    return not small**0.5 * SPACING <= COARSE * float(tensor.float().norm())


def _warn(found: Mapping[str, Tensor], truth: Mapping[str, Tensor] | None) -> None:
    """Say which sums of a coarse graph are not what float32 makes of them.

    Where nothing but float16 is to be had (`truth` is None), which of them are zero.
    """
    if truth is None:
        zero = [name for name, total in found.items() if not total.any()]
        if zero:
            warn(
                f"The gradients of {some(zero)} are zero in float16, while others are so small "
                "that they may lie below its range: then their importance is too small. " + REMEDY
            )
        return
    gone = [
        name
        for name, total in found.items()
        if not distance(total, truth[name]) <= GONE * float(truth[name].norm())
    ]
    if gone:
        warn(
            f"The gradients of {some(gone)} lie below the range of float16: their importance is "
            f"too small, or zero. {REMEDY}"
        )
