"""What is known about one graph: enough to run its per-sample backward, and to run it again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from retain.per_sample.frontier import Frontier, ResultKey, find_frontier
from retain.per_sample.graph import Graph
from retain.per_sample.groups import Group, make_groups
from retain.per_sample.layout import Blocks, Layout, Owners
from retain.per_sample.nodes import shape_of


@dataclass
class Habits:
    """What passes along a plan have shown, so that the next ones need not look again."""

    # a group, and the results whose gradients it has → whether its sums can be pulled back
    copying: dict[tuple[Group, frozenset[ResultKey]], bool] = field(default_factory=dict)
    # groups whose contributions cannot be carried back: operations are asked for every sample
    asked: set[Group] = field(default_factory=set)
    pulls_back: bool | None = None  # whether operations are asked again after a pass; None: not run


@dataclass(frozen=True)
class Plan:
    """The uses of the parameters in a graph, in groups, and the layouts at the frontier.

    Never changed: another batch, or more trust, makes another plan.
    """

    frontier: Frontier
    groups: tuple[Group, ...]
    inseparable: frozenset[str]  # used, but by no way that separates samples
    stops: tuple[ResultKey, ...]  # those of a node in order, behind one another
    shapes: Mapping[ResultKey, torch.Size]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", MappingProxyType(dict(self.shapes)))

    @property
    def certain(self) -> bool:
        """Whether the layouts hold for every batch that makes the same graph."""
        return self.frontier.certain

    @property
    def likely(self) -> bool:
        """Whether they may be tried on a larger batch, and kept if they prove right there."""
        return not self.frontier.doubtful

    @property
    def can_be_settled(self) -> bool:
        """Whether every doubt is between layouts that another number of samples has as well."""
        known = self.frontier
        return all(isinstance(known.layouts[key], Blocks) for key in known.doubtful)

    @property
    def proved(self) -> Plan:
        """The same, where no other layouts than the likely ones were found to fit."""
        return replace(self, frontier=self.frontier.settled({}))

    def settled(self, seen: Sequence[Plan]) -> Plan | None:
        """The same, certain; None unless one layout is left that fits what plans have `seen`.

        They are of the same graph for other numbers of samples. Where a sequence is by one longer
        than a multiple of the samples, more layouts fit a class token than its own, but others for
        another number. So the one that is left may be another than the neighbours' had been taken
        for; it is right for this batch if it was read off it, not where a plan has grown.
        """
        ours = self.frontier
        if not all(plan.can_be_settled for plan in (self, *seen)):
            return None
        layouts: dict[ResultKey, Layout] = {}
        for key in ours.layouts.keys() - ours.silent:
            fitting = ours.fitting.get(key, (ours.layouts[key],))
            left = [one for one in fitting if all(_fits_too(one, key, plan) for plan in seen)]
            if len(left) != 1:
                return None
            if left[0].samples == ours.layouts[key].samples:
                layouts[key] = left[0]
            elif not _alike(left[0], ours.layouts[key]):
                return None
        return replace(self, frontier=ours.settled(layouts))

    def hearing(self, before: Plan) -> Plan:
        """The same, where what is zero here and was not `before` has the layout that it had then.

        Both hold for every batch of one size that makes the same graph. A recurrent network that
        reads texts to their last tokens has other steps of which nothing depends in every batch.
        """
        ours, theirs = self.frontier, before.frontier
        heard = ours.silent & (theirs.layouts.keys() - theirs.silent)
        layouts = {**ours.layouts, **{key: theirs.layouts[key] for key in heard}}
        return replace(self, frontier=replace(ours, layouts=layouts, silent=ours.silent - heard))

    def fits(self, graph: Graph) -> bool:
        """Whether the graph has the very shapes that the plan was made for, and rows in order."""
        alike = all(shape_of(graph.order[at], out) == s for (at, out), s in self.shapes.items())
        return alike and self.frontier.numbered <= graph.numbered

    def grown(self, graph: Graph, samples: int) -> Plan | None:
        """This plan for a graph of more samples; None where the shapes do not follow."""
        layouts: dict[ResultKey, Layout] = {}
        shapes: dict[ResultKey, torch.Size] = {}
        for key, layout in self.frontier.layouts.items():
            shape = shape_of(graph.order[key[0]], key[1])
            small = self.shapes[key]
            silent = key in self.frontier.silent  # there, any that fits will do
            fitting = self.frontier.fitting[key] if silent else (layout,)
            larger = next((g for one in fitting if (g := _grown(one, small, shape, samples))), None)
            if larger is None:
                return None
            layouts[key], shapes[key] = larger, shape
        frontier = replace(self.frontier, layouts=layouts)
        return replace(self, frontier=frontier, shapes=shapes)


def _grown(layout: Layout, small: torch.Size, shape: torch.Size, samples: int) -> Blocks | None:
    """The layout of a gradient of another shape, if nothing but the samples' dimension changed."""
    if isinstance(layout, Owners) or len(shape) != len(small):
        return None
    if any(a != b for d, (a, b) in enumerate(zip(shape, small)) if d != layout.dim):
        return None
    return layout.grown(samples, shape[layout.dim])


def _fits_too(layout: Layout, key: ResultKey, plan: Plan) -> bool:
    """Whether it is one of those that fitted another number of samples."""
    seen = plan.frontier
    if key in seen.silent or key not in seen.layouts:
        return key in seen.silent
    return any(_alike(layout, one) for one in seen.fitting.get(key, (seen.layouts[key],)))


def _alike(one: Layout, other: Layout) -> bool:
    """Whether they are the same but for the number of samples."""
    return isinstance(one, Blocks) and isinstance(other, Blocks) and one.order == other.order


def make_plan(graph: Graph, weights: list[Tensor], held: Collection[int]) -> Plan:
    """Probe the graph, and order the work: which nodes to watch, and where the pass may stop."""
    frontier = find_frontier(graph, weights, held)
    groups, inseparable = make_groups(graph, frontier)
    watched = {use.node for group in groups for use in group.uses}
    leading: set[int] = set()  # nodes from which a watched node can be reached
    stops = []
    for at, node in enumerate(graph.order):
        below = {graph.position[b] for b, _ in node.next_functions if b is not None}
        reaches = not below.isdisjoint(leading)
        if at in watched and not reaches:
            stops += [(at, output) for output in graph.outputs(node)]
        if reaches or at in watched:
            leading.add(at)
    shapes = {key: shape_of(graph.order[key[0]], key[1]) for key in frontier.layouts}
    return Plan(frontier, tuple(groups), frozenset(inseparable), tuple(stops), shapes)
