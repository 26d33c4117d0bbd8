"""How gradients at the frontier come back to the parameters, through what lies between."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import Node

from retain.per_sample.frontier import Frontier
from retain.per_sample.graph import Graph, Output
from retain.per_sample.groups import Group
from retain.per_sample.nodes import call, operation, shape_of
from retain.per_sample.passes import Grads
from retain.per_sample.uses import edge_of

# Operations that only copy elements about: the gradient of a parameter is that of its copies.
COPYING = {
    *("T", "Transpose", "Permute", "View", "UnsafeView", "Unsqueeze", "Squeeze"),
    *("Alias", "Clone", "ToCopy", "Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit"),
    *("Unbind", "Narrow", "Index", "IndexSelect", "Gather", "Embedding", "Expand", "Repeat"),
    *("Stack", "Cat", "Flip", "Roll", "Detach", "Contiguous", "MovedimBackward", "Diagonal"),
}
# Operations that multiply every element by a number that is the same for all samples: f′(θ), where
# f is elementwise and made of parameters and buffers alone.
SCALING = {
    *("Mul", "Div", "Neg", "Add", "Sub", "Rsub", "Where", "MaskedFill", "Tril", "Triu"),
    *("Exp", "Log", "Tanh", "Sigmoid", "Softplus", "Relu", "Elu", "Silu", "Gelu", "Sqrt", "Rsqrt"),
    *("Pow", "Abs", "Clamp", "ClampMin", "ClampMax", "Reciprocal", "Sin", "Cos"),
}
LONG = 1 << 13  # numbers: from here on a CPU works for longer than it takes to call an operation
RESHAPING = {"View", "UnsafeView", "Unsqueeze", "Squeeze"}


def is_transpose(node: Node) -> bool:
    """Whether the node transposes a matrix."""
    name = operation(node)
    if len(shape_of(node)) != 2:
        return False
    if name == "Transpose":
        return {node._saved_dim0 % 2, node._saved_dim1 % 2} == {0, 1}  # type: ignore[attr-defined]
    return name == "T" or (name == "Permute" and node._saved_dims[0] % 2 == 1)  # type: ignore[attr-defined]


def pull_back(
    graph: Graph,
    frontier: Frontier,
    grads: Mapping[Output, Tensor],
    step: Callable[[Node, Grads], list[Tensor | None]] = call,
) -> dict[Node, Tensor]:
    """Gradients at results between parameters and frontier → gradients at the parameters.

    Exact for whatever lies between: each node's own backward is called, the last node first.
    (`step` gives the gradients of a node's inputs.)
    """
    arrived: dict[Node, dict[int, Tensor]] = {}
    pending: set[int] = set()

    def arrive(node: Node, output: int, grad: Tensor) -> None:
        results = arrived.setdefault(node, {})
        results[output] = results[output] + grad if output in results else grad
        pending.add(graph.position[node])

    for (node, output), grad in grads.items():
        arrive(node, output, grad)
    leaves = set(graph.leaves.values())
    found: dict[Node, Tensor] = {}
    while pending:
        at = max(pending)
        pending.remove(at)
        node = graph.order[at]
        results = arrived.pop(node)
        if node in leaves:
            found[node] = results[0]
            continue
        received = tuple(results.get(output) for output in range(max(results) + 1))
        for (below, output), grad_below in zip(node.next_functions, step(node, received)):
            wanted = below is not None and graph.position[below] in frontier.between
            if below is not None and wanted and grad_below is not None:
                arrive(below, output, grad_below)
    return found


def are_long(gradients: Tensor) -> bool:
    """Whether samples' gradients [m, …] are better taken one by one than as a batch.

    A batched backward is often put together of many operations, where that of one is a single loop.
    """
    return gradients.device.type == "cpu" and gradients[0].numel() >= LONG


def pull_back_several(
    graph: Graph, frontier: Frontier, grads: Mapping[Output, Tensor]
) -> dict[Node, Tensor]:
    """`pull_back` of several samples' gradients, [m, …] each, in as many operations as of one."""
    outputs, stacked = list(grads), tuple(grads.values())
    leaves: list[Node] = []

    def pulled(*of_one: Tensor) -> tuple[Tensor, ...]:
        found = pull_back(graph, frontier, dict(zip(outputs, of_one)))
        leaves[:] = found
        return tuple(found.values())

    if len(stacked[0]) > 1 and not are_long(stacked[0]):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")
                return dict(zip(leaves, torch.func.vmap(pulled)(*stacked)))
        except (RuntimeError, ValueError, NotImplementedError):
            pass  # an operation that does not know batches of gradients
    each = [pulled(*of_one) for of_one in zip(*stacked)]
    return {leaf: torch.stack(gradients) for leaf, gradients in zip(leaves, zip(*each))}


def chain(graph: Graph, frontier: Frontier, group: Group) -> list[Node]:
    """Every node between the group's uses and its parameters."""
    found: list[Node] = []
    stack = [edge_of(graph, use)[0] for use in group.uses]
    leaves = set(graph.leaves.values())
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node in seen or node in leaves or graph.position[node] not in frontier.between:
            continue
        seen.add(node)
        found.append(node)
        stack += [below for below, _ in node.next_functions if below is not None]
    return found


def moves_and_scales(
    graph: Graph, frontier: Frontier, edges: Iterable[Output], nodes: Iterable[Node]
) -> bool:
    """Whether every element of the parameters reaches `edges` at most once, moved and scaled.

    Then |Jᵀg|ᵖ = (|J|ᵖ)ᵀ|g|ᵖ: sums of powers can be pulled back once instead of every sample.
    """
    if any(operation(node) not in COPYING | SCALING for node in nodes):
        return False

    def step(node: Node, grads: Grads) -> list[Tensor | None]:
        if operation(node) not in SCALING:
            return call(node, grads)
        (arrived,) = grads  # whatever the factor, it is one
        assert arrived is not None
        return [
            None if below is None else arrived.sum_to_size(shape_of(below, output))
            for below, output in node.next_functions
        ]

    device, dtype = graph.scores.device, graph.scores.dtype
    ones = {edge: torch.ones(shape_of(*edge), dtype=dtype, device=device) for edge in edges}
    covered = pull_back(graph, frontier, ones, step)
    # whole numbers, but for the rounding of the operations between
    return all(bool((count < 1.5).all()) for count in covered.values())
