"""A use: one input of an operation at the frontier that leads to parameters."""

from __future__ import annotations

from dataclasses import dataclass

from retain.per_sample.graph import Graph, Output


@dataclass(frozen=True)
class ParameterUse:
    """Which node, by its position in the graph, and which of its inputs."""

    node: int
    index: int


def below_of(graph: Graph, use: ParameterUse) -> int:
    """The position of the node that a use leads to."""
    return graph.position[graph.order[use.node].next_functions[use.index][0]]  # type: ignore[index]


def edge_of(graph: Graph, use: ParameterUse) -> Output:
    """The result, (node, output), whose gradient the use contributes to."""
    node, output = graph.order[use.node].next_functions[use.index]
    assert node is not None
    return node, output
