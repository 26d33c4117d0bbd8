"""Parameters and uses that belong together, since their gradients have to be known together."""

from __future__ import annotations

from dataclasses import dataclass

from retain.per_sample.frontier import Frontier
from retain.per_sample.graph import Graph
from retain.per_sample.uses import ParameterUse, below_of


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that share uses: alone in most models, several under weight norm or W + BA.

    Told apart by being different ones: with many uses, a hash over all would take longer than they.
    """

    names: tuple[str, ...]
    uses: tuple[ParameterUse, ...]


def make_groups(graph: Graph, frontier: Frontier) -> tuple[list[Group], set[str]]:
    """Uses and parameters in connected groups, and the parameters that no use leads to."""
    name_of = {graph.position[leaf]: name for name, leaf in graph.leaves.items()}
    reach: dict[int, frozenset[str]] = {}
    for at in sorted(frontier.between):
        below = (graph.position[b] for b, _ in graph.order[at].next_functions if b is not None)
        own = {name_of[at]} if at in name_of else set()
        reach[at] = frozenset(own).union(*(reach.get(b, frozenset()) for b in below))
    group_of: dict[str, set[str]] = {name: {name} for name in graph.leaves}
    uses_of: dict[str, dict[ParameterUse, int]] = {name: {} for name in graph.leaves}
    for at, use in enumerate(frontier.uses):
        reached = reach[below_of(graph, use)]
        merged = set().union(*(group_of[name] for name in reached))
        for name in merged:
            group_of[name] = merged
        for name in reached:
            uses_of[name][use] = at
    groups: list[Group] = []
    placed: set[str] = set()
    for name in graph.leaves:
        if name in placed:
            continue
        members = group_of[name]
        found = {use: at for member in members for use, at in uses_of[member].items()}
        if found:
            groups.append(
                Group(tuple(sorted(members)), tuple(sorted(found, key=found.__getitem__)))
            )
            placed |= members
    return groups, set(graph.leaves) - placed
