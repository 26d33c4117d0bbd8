"""The autograd graph of a forward pass, as it really ran: operations, and who uses whom."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor
from torch.autograd.graph import Node

from retain.per_sample.below import any_older, inputs_first
from retain.per_sample.nodes import arguments, is_custom, is_numbered, name_of, operation
from retain.per_sample.precision import Precision, narrowest

# Nodes are compared by identity; `Link` is one use of a node's result: (user, which input of it).
Link = tuple[Node, int]
Output = tuple[Node, int]


class Graph:
    """The graph behind `scores`: a node comes after everything that it was computed from."""

    def __init__(
        self, scores: Tensor, parameters: Mapping[str, Tensor], output: Tensor, *, since: int = 0
    ) -> None:
        assert scores.grad_fn is not None
        self._since = since
        self.scores = scores
        self.output = output  # F(x), detached
        self.order = inputs_first(scores.grad_fn)
        self.position = {node: at for at, node in enumerate(self.order)}
        by_tensor = {id(p): name for name, p in parameters.items()}
        # name → the node in which the gradient of this parameter ends; absent where it is unused.
        self.leaves: dict[str, Node] = {}
        self.other_leaves: list[Node] = []  # in which the gradients of other tensors end
        self._picking: list[Node] = []  # by indices
        wires: list[object] = []  # of every node its name, and what it was computed from
        for node in self.order:
            name, links = name_of(node), node.next_functions
            wires.append(name)
            if name.startswith("IndexBackward"):
                self._picking.append(node)
            for below, result in links:
                wires.append(None if below is None else (self.position[below], result))
            # asking for what is not there takes longer than to look whether it may be
            variable = None if links else getattr(node, "variable", None)
            if variable is not None and id(variable) in by_tensor:
                self.leaves[by_tensor[id(variable)]] = node
            elif variable is not None:
                self.other_leaves.append(node)
        self._wires = tuple(wires)

    @property
    def of_one(self) -> bool:
        """Whether there is but one sample."""
        return self.scores.shape[-1] == 1

    @cached_property
    def numbered(self) -> frozenset[int]:
        """Operations that pick of every row a place of its own; to be asked before a pass."""
        return frozenset(self.position[node] for node in self._picking if is_numbered(node))

    @cached_property
    def users(self) -> dict[Node, list[Link]]:
        """Node → who uses its results."""
        found: dict[Node, list[Link]] = {}
        for node in self.order:
            for index, (below, _) in enumerate(node.next_functions):
                if below is not None:
                    found.setdefault(below, []).append((node, index))
        return found

    @cached_property
    def has_functions(self) -> bool:
        """Whether any operation is a user's own Function, whose backward may do more."""
        return any(map(is_custom, self.order))

    @cached_property
    def goes_further_back(self) -> bool:
        """Whether it holds operations from before `since`, which other graphs hold as well."""
        return any_older(self.order, self._since)

    @cached_property
    def wiring(self) -> int:
        """Equal for two graphs of the same operations and parameters, wired in the same way."""
        leaves = ((name, self.position[leaf]) for name, leaf in self.leaves.items())
        return hash((self._wires, *leaves))

    @cached_property
    def signature(self) -> int:
        """Equal for two graphs of one wiring whose operations also have the same arguments.

        Sizes, dimensions, shifts and pieces are arguments: they decide who owns which row.
        """
        return hash(
            (
                self.wiring,
                self.precision,
                *(value for node in self.order for value in arguments(node)),
            )
        )

    @cached_property
    def precision(self) -> Precision:
        """The least that any of the operations ran in, with what autocast made of it."""
        results = {out.dtype for node in self.order for out in node._input_metadata}
        return Precision(narrowest(*results))

    @cached_property
    def operations(self) -> frozenset[str]:
        """The kinds of operation in the graph."""
        return frozenset(operation(node) for node in self.order)

    def outputs(self, node: Node) -> list[int]:
        """Which of the node's results were used, in order; [0] for the root."""
        used = {user.next_functions[index][1] for user, index in self.users.get(node, ())}
        return sorted(used) or [0]
