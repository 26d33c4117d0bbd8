"""One operation in the autograd graph: its name, its arguments, and its own backward."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

# A reshape that copies nothing has another name while somebody watches what PyTorch dispatches.
SAME = {"ReshapeAliasBackward0": "ViewBackward0"}


def name_of(node: Node) -> str:
    """Autograd's name for the node: the same for what does the same."""
    name = node.name()
    return SAME.get(name, name)


def operation(node: Node) -> str:
    """The operation's name without autograd's decoration: "AddmmBackward0" → "Addmm"."""
    return _undecorated(name_of(node))


@lru_cache(maxsize=1 << 12)  # asked for every node of every batch
def _undecorated(name: str) -> str:
    return re.sub(r"Backward\d*$", "", name.rpartition("::")[2])


def is_custom(node: Node) -> bool:
    """Whether the node is a user's `torch.autograd.Function`."""
    return not callable(node)


def shape_of(node: Node, output: int = 0) -> torch.Size:
    """The shape of what the node's operation returned, and so of the gradient it receives."""
    return torch.Size(node._input_metadata[output].shape)


SIMPLE = frozenset({int, float, str, bool, type(None)})  # arguments that are compared by value

# The name of an operation → the names under which its nodes keep arguments that are not tensors.
_ARGUMENTS: dict[str, tuple[str, ...]] = {}


def arguments(node: Node) -> list[Any]:
    """What the operation was called with beside tensors, as far as its node keeps it."""
    name = node.name()
    attributes = _ARGUMENTS.get(name)
    if attributes is None:
        if is_custom(node):
            return []
        saved = (attribute for attribute in dir(node) if attribute.startswith("_saved_"))
        attributes = tuple(a for a in saved if not _holds_tensors(getattr(node, a)))
        _ARGUMENTS[name] = attributes
    found = []
    for attribute in attributes:  # of every node of every batch
        value = getattr(node, attribute)
        kind = type(value)
        if kind in SIMPLE:
            found.append(value)
        elif kind in (list, tuple) and SIMPLE.issuperset(map(type, value)):
            found.append(tuple(value))
    return found


def _holds_tensors(value: Any) -> bool:
    many = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(one, Tensor) for one in many)


def constants(node: Node) -> list[tuple[str, Any]]:
    """The single numbers that the operation's backward uses, by the names that they have in it.

    Not sizes, which change with the number of samples.
    """
    if is_custom(node):
        return []
    found = []
    for attribute in (name for name in dir(node) if name.startswith("_saved_")):
        value = getattr(node, attribute)
        if isinstance(value, Tensor):
            value = value.item() if value.ndim == 0 and not value.is_complex() else None
        if isinstance(value, (bool, float)):
            found.append((attribute.removeprefix("_saved_"), value))
    return found


def by_itself(grad: Tensor) -> Tensor:
    """A gradient [1, …] that lies in memory as it would by itself.

    With channels last, and a stride from row to row that is that of a larger tensor (of which a
    class token was cut off), the backward of batch norms takes one channel for another on a CPU.
    """
    whole = grad[:1].numel()
    return grad.contiguous() if len(grad) == 1 and grad.stride(0) != whole else grad


@contextmanager
def rightly(nodes: Iterable[Node]) -> Iterator[None]:
    """Backward passes through these nodes give batch norms of one row what they compute with."""

    def arrives(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(None if grad is None else by_itself(grad) for grad in grads)

    norms = [n for n in nodes if operation(n) == "NativeBatchNorm" and shape_of(n)[0] == 1]
    hooks = [node.register_prehook(arrives) for node in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def is_numbered(node: Node) -> bool:
    """Whether x[i, j, …] is picked with i = 0, 1, 2, …: of every row a place of its own.

    Such as the last token of each text. What i is, the data might decide, so that it is looked at
    in every batch.
    """
    first, *others = node._saved_indices  # type: ignore[attr-defined]
    if first is None or any(i is None or i.ndim > 1 for i in others):
        return False
    whole = first.dtype == torch.int64 and first.shape == shape_of(node)[:1]
    return whole and torch.equal(first, torch.arange(len(first), device=first.device))


class UnaskableError(Exception):
    """A node whose own backward cannot be asked for the gradients of its inputs."""


def call(node: Node, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The node's own backward, and only its own: the gradients of its inputs, in their shapes.

    Autograd's engine runs the paths below a node as well; this does not, and it leaves the saved
    tensors where they are, so that it can be called again.
    """
    outputs = len(node._input_metadata)
    full = grads + (None,) * (outputs - len(grads))
    if is_custom(node):  # autograd gives a user's function zeros where nothing arrived
        like = next(g for g in grads if g is not None)
        full = tuple(
            like.new_zeros(shape_of(node, i)) if g is None else g for i, g in enumerate(full)
        )
    with torch.no_grad():
        result = node.apply(*full) if is_custom(node) else node(*full)  # type: ignore[operator,attr-defined]
    found = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(found) != len(node.next_functions):
        raise UnaskableError(node.name())  # it has inputs that are not tensors
    return [
        g if g is None or below is None else g.sum_to_size(shape_of(below, output))
        for g, (below, output) in zip(found, node.next_functions)
    ]
