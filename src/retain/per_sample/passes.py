"""Backward passes over a graph: which scores they weigh, where they stop, and what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from retain.per_sample.graph import Graph, Output
from retain.per_sample.nodes import rightly
from retain.per_sample.switches import without_autocast

Grads = tuple[Tensor | None, ...]  # what arrives at the results of a node


def score_weights(graph: Graph) -> list[Tensor]:
    """Weights that pick Σₖ of each score in turn: one backward pass each."""
    if graph.scores.ndim == 1:
        return [torch.ones_like(graph.scores)]
    return [
        torch.zeros_like(graph.scores).index_fill_(
            0, torch.tensor([d], device=graph.scores.device), 1
        )
        for d in range(len(graph.scores))
    ]


def only_the_outer(rows: Iterable[Tensor]) -> list[Tensor]:
    """These weights for the first and the last sample, and nothing for those between."""
    outer = [row.clone() for row in rows]
    for row in outer:
        row[..., 1:-1] = 0
    return outer


def one_by_one(rows: Iterable[Tensor], samples: int) -> Iterator[Tensor]:
    """Of each of these weights, what it says of one sample, and nothing for the others."""
    for row in rows:
        for k in range(samples):
            only = torch.zeros_like(row)
            only[..., k] = row[..., k]
            yield only


def over_all_scores(graph: Graph, of_samples_n: Tensor) -> Tensor:
    """Weights for a pass over all scores together, sample k's multiplied by of_samples[k]."""
    if graph.scores.ndim == 1:
        return of_samples_n
    # different from score to score, so that scores that sum to a constant do not cancel
    each = torch.linspace(0.5, 1.5, len(graph.scores), dtype=of_samples_n.dtype)
    return each.to(of_samples_n.device)[:, None] * of_samples_n


def gradients_at(
    graph: Graph, weights: Tensor, wanted: Iterable[Output], *, keep: bool = True
) -> list[Tensor | None]:
    """∂(Σ weights·scores) with respect to each wanted result, and nothing else computed.

    The graph is kept, so that the operations can be asked again; or else its activations are
    let go as the pass no longer needs them. What other graphs hold too is kept anyway.
    """
    keep = keep or graph.goes_further_back
    edges = [GradientEdge(node, output) for node, output in wanted]
    if not edges:
        return []
    with rightly(graph.order if graph.of_one else ()), without_autocast():
        found = torch.autograd.grad(
            graph.scores, edges, grad_outputs=weights, retain_graph=keep, allow_unused=True
        )
    return list(found)


def backward_pass(
    graph: Graph,
    weights: Tensor,
    stops: Iterable[Output],
    watch: Mapping[Node, Callable[[Grads], None]],
    *,
    keep: bool = True,
) -> None:
    """One backward pass, down to `stops`, that shows each watched node its gradients.

    Gradients of ordinary weights are never computed: only what lies between the scores and
    `stops`, the results of some nodes, runs. These nodes are watched too; what reaches them is
    shown at the end. `keep` the graph for another pass, or let it go on the way.
    """
    wanted = list(stops)
    held = {node for node, _ in wanted}
    hooks = [
        node.register_prehook(lambda grads, see=see: see(grads))
        for node, see in watch.items()
        if node not in held
    ]
    try:
        found = gradients_at(graph, weights, wanted, keep=keep)
    finally:
        for hook in hooks:
            hook.remove()
    while wanted:  # each is let go when it was shown
        node, last = wanted.pop()
        grads: list[Tensor | None] = [None] * (last + 1)
        grads[last] = found.pop()
        while wanted and wanted[-1][0] is node:
            grads[wanted.pop()[1]] = found.pop()
        watch[node](tuple(grads))
