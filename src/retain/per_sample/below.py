"""What lies below a node of an autograd graph: whatever its result was computed from."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from retain.per_sample.nodes import is_custom


def inputs_first(root: Node) -> list[Node]:
    """All nodes below `root`, each after everything that it was computed from."""
    order: list[Node] = []
    seen: set[Node] = {root}
    stack: list[tuple[Node, Any]] = [(root, iter(root.next_functions))]
    while stack:
        node, below = stack[-1]
        for child, _ in below:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append((child, iter(child.next_functions)))
                break
        else:
            order.append(node)
            stack.pop()
    return order


def leaves_below(root: Node) -> list[Tensor]:
    """The tensors in which the graph below a node ends: parameters, and inputs with gradients."""
    variables = (getattr(node, "variable", None) for node in inputs_first(root))
    return [variable for variable in variables if variable is not None]


def has_functions(root: Node) -> bool:
    """Whether any operation below a node is a user's own Function, whose backward may do more."""
    return any(map(is_custom, inputs_first(root)))
