"""The slow truth: Σₖ |∂sₖ/∂θ|ᵖ, one sample at a time, by ordinary autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from retain.per_sample.below import any_older, beginning, inputs_first, leaves_of
from retain.per_sample.graph import Graph
from retain.per_sample.lent import gradients_aside, taken_gradients
from retain.per_sample.nodes import is_custom, rightly
from retain.per_sample.passes import gradients_at
from retain.per_sample.scores import Score
from retain.per_sample.switches import without_autocast
from retain.pieces import add_powers_
from retain.samples.batches import Batch
from retain.samples.outputs import OutputPicker, output_of


def sums_by_loop(
    model: nn.Module,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    score: Score,
    *,
    power: int = 1,
    output: OutputPicker,
    target: Tensor | None = None,
    outputs: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Σₖ |∂sₖ/∂θ|ᵖ for every parameter, shaped like it, by one forward and backward per sample.

    With several scores per sample the powers are summed over them as well. A parameter that a
    sample does not use gets 0 from it. `target` belongs to the whole batch and is cut along.
    `outputs` is filled with F(x) of each sample.
    """
    sums: dict[str, Tensor] = {}
    with gradients_aside(model):
        for k in range(batch.samples):
            one = batch.take(k, k + 1)
            since = beginning()
            with torch.enable_grad():
                out = output_of(model, one, output)
                with without_autocast():
                    cut = None if target is None else target[k : k + 1]
                    scores = scored(score, out, cut, one)[0].reshape(-1)
            if outputs is not None:
                outputs.append(out.detach())
            nodes = [] if scores.grad_fn is None else inputs_first(scores.grad_fn)
            leaves, shared = _with_side_doors(nodes, parameters), any_older(nodes, since)
            for index, s in enumerate(scores):
                keep = shared or index < len(scores) - 1
                with rightly(nodes), without_autocast():
                    given = (
                        torch.autograd.grad(s, leaves, retain_graph=keep, allow_unused=True)
                        if leaves
                        else ()
                    )
                add_powers(sums, complete(dict(zip(parameters, given)), parameters), power)
                del given  # those of the next sample would stand beside them
    unused = parameters.keys() - sums.keys()
    sums |= {name: torch.zeros_like(parameters[name], requires_grad=False) for name in unused}
    return {name: sums[name] for name in parameters}


def _with_side_doors(nodes: Sequence[Node], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """The parameters, and behind them whatever else these nodes end in, if it may lead to them.

    A parameter may get a gradient, or some more of it, from a backward that an operation calls
    inside of its own; and autograd runs only what leads to what is asked for.
    """
    asked = list(parameters.values())
    if not asked:
        return asked
    below = {id(leaf): leaf for leaf in leaves_of(nodes)}
    if all(id(p) in below for p in asked) and not any(map(is_custom, nodes)):
        return asked
    own = {id(p) for p in asked}
    return [*asked, *(leaf for number, leaf in below.items() if number not in own)]


def scored(
    score: Score, output: Tensor, target: Tensor | None, batch: Batch
) -> tuple[Tensor, Tensor | None]:
    """The scores of an output, in single precision at least, and the target they were made with."""
    wide = output if output.dtype.itemsize >= 4 else output.float()
    if target is None:
        target = score.target(wide.detach(), batch)
    return score(wide, target), target


def gradients_of(
    graph: Graph, weights: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """∂(Σ weights·scores)/∂θ for every parameter that has one, by an ordinary backward pass."""
    ends = [(leaf, 0) for leaf in graph.leaves.values()]
    # some may have theirs, or a part of it, from a backward inside
    if graph.has_functions or parameters.keys() - graph.leaves.keys():
        ends += [(end, 0) for end in graph.other_leaves]
    return complete(dict(zip(graph.leaves, gradients_at(graph, weights, ends))), parameters)


def complete(
    found: Mapping[str, Tensor | None], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients, dense, together with what came to `p.grad` by a backward inside the backward."""
    every = {name: g.to_dense() if g.is_sparse else g for name, g in found.items() if g is not None}
    for name, g in taken_gradients(parameters).items():
        every[name] = every[name] + g if name in every else g
    return every


def add_powers(sums: dict[str, Tensor], gradients: Mapping[str, Tensor], power: int) -> None:
    """Add Σ |gₖ|ᵖ of one sample to the sums."""
    for name, g in gradients.items():
        _add_power(sums, name, g, power)


def _add_power(sums: dict[str, Tensor], name: str, gradient: Tensor, power: int) -> None:
    """Σ |gₖ|ᵖ (MAS, eq. 2, for p = 1; the diagonal Fisher for p = 2), with no P-sized temporary."""
    if name in sums:
        add_powers_(sums[name], gradient, power)
        return
    raised = torch.abs if power == 1 else torch.square
    sums[name] = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    raised(gradient, out=sums[name])
