"""What lies below a node of an autograd graph: whatever its result was computed from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node


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


def leaves_of(nodes: Iterable[Node]) -> list[Tensor]:
    """The tensors in which these nodes end: parameters, and inputs with gradients."""
    variables = (getattr(node, "variable", None) for node in nodes)
    return [variable for variable in variables if variable is not None]


def beginning() -> int:
    """A number that no operation has which autograd records from now on in this thread."""
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True).clone().grad_fn
    assert node is not None
    return node._sequence_nr()


def any_older(nodes: Iterable[Node], beginning: int) -> bool:
    """Whether any of these was there already: then a pass must not let go what it saved.

    An input that parts of the same model have made is differentiated in one pass after the other.
    """
    return any(node._sequence_nr() < beginning for node in nodes)
