"""Where each parameter first meets the samples: its frontier, and what lies between the two.

The frontier of a parameter is the first operation after it whose incoming gradient is separable by
sample. Between the two lie operations on parameters alone (transposes, views, weight norm, masks),
which are pulled back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.autograd.graph import Node

from retain.per_sample.graph import Graph, Output
from retain.per_sample.layout import Blocks, Layout, find_layouts
from retain.per_sample.nodes import is_custom, operation, shape_of
from retain.per_sample.passes import gradients_at, over_all_scores
from retain.per_sample.uses import ParameterUse
from retain.per_sample.wandering import may_move, wandering

# Operations whose result also depends on something that has no edge in the graph, so that a
# parameter as their only input does not make the result a parameter's.
HIDDEN_INPUTS = {"Embedding", "EmbeddingBag", "Index", "IndexSelect", "Gather", "Where"}
SPREADING = {"Expand", "Repeat"}


ResultKey = tuple[int, int]  # a node's position in the graph, and which of its results
Fits = dict[int, list[Layout]]  # of a node's results: the layouts that explain their gradients


@dataclass(frozen=True)
class Frontier:
    """What a graph's probing found."""

    uses: tuple[ParameterUse, ...]
    # (node, output) → which sample owns which element of the gradient that arrives there
    layouts: Mapping[ResultKey, Layout]
    between: frozenset[int]
    # Where most gradients are zero, several layouts fit. Any is right for the gradients at hand;
    # those in `likely` are laid out as their neighbours are; for the rest there is no telling, as
    # they have no neighbours, or neighbours of more than one of the layouts that fit.
    doubtful: frozenset[ResultKey] = frozenset()
    likely: frozenset[ResultKey] = frozenset()
    # all of those that come into question for a result above
    fitting: Mapping[ResultKey, tuple[Layout, ...]] = field(default_factory=dict)
    # where every gradient is zero, so that any layout is right as long as they are (a branch, or a
    # head, of which the weight is zero)
    silent: frozenset[ResultKey] = frozenset()
    # operations that may lay out another batch in another way
    wandering: tuple[str, ...] = ()
    # operations that keep rows in their places as long as they pick of every row a place of its own
    numbered: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layouts", MappingProxyType(dict(self.layouts)))
        object.__setattr__(self, "fitting", MappingProxyType(dict(self.fitting)))

    @property
    def certain(self) -> bool:
        """Whether the layouts are the only ones that fit."""
        return not self.doubtful and not self.likely

    def settled(self, layouts: Mapping[ResultKey, Layout]) -> Frontier:
        """The same, where other samples have shown that nothing but these `layouts` fits all."""
        nothing: frozenset[ResultKey] = frozenset()
        chosen = {**self.layouts, **layouts}
        return replace(self, layouts=chosen, doubtful=nothing, likely=nothing)


def find_frontier(graph: Graph, weights: list[Tensor], held: Collection[int]) -> Frontier:
    """The frontier of every parameter in the graph, by as many rounds of probing as it takes.

    `weights` are those of the samples in the probing passes (`layout.probe_weights`), `held` the
    storages of the model's parameters.
    """
    known: dict[Node, Fits | None] = {}
    zero: set[Output] = set()
    samples = len(weights[0])
    movers = _results(graph, (node for node in graph.order if may_move(graph, node, samples)))
    moved: dict[Output, list[Tensor]] = {}
    while True:
        between, uses, unknown = _climb(graph, known)
        if not unknown:
            break
        asked = _unknown(graph, known, unknown)
        # the first passes show along which dimension of a mover the samples lie, as well
        beside = [] if known else movers
        arrived = _probe(graph, dict.fromkeys([*_results(graph, asked), *beside]), weights)
        moved |= {result: arrived[result] for result in beside}
        known.update(_fits(graph, asked, arrived, weights, zero))
    at = graph.position
    fits: dict[ResultKey, tuple[torch.Size, list[Layout]]] = {
        (at[node], output): (shape_of(node, output), layouts)
        for node, _ in uses
        for output, layouts in (known[node] or {}).items()
    }
    silent = frozenset((at[node], output) for node, output in zero) & fits.keys()
    layouts, likely, doubtful = _choose(fits)
    return Frontier(
        uses=tuple(ParameterUse(at[node], index) for node, index in uses),
        layouts=layouts,
        between=frozenset(at[node] for node in between),
        doubtful=doubtful - silent,
        likely=likely - silent,
        fitting={key: tuple(fits[key][1]) for key in likely | doubtful | silent},
        silent=silent,
        wandering=wandering(graph, between, held, moved, weights) if uses else (),
        numbered=frozenset(
            n for n in graph.numbered if graph.order[n].next_functions[0][0] not in between
        ),
    )


def _choose(
    fits: Mapping[ResultKey, tuple[torch.Size, list[Layout]]],
) -> tuple[dict[ResultKey, Layout], frozenset[ResultKey], frozenset[ResultKey]]:
    """Of several layouts that fit, the one of other gradients whose dimension is as long.

    Also those for which neighbours had to decide, and those for which they could not.
    """
    chosen = {key: layouts[0] for key, (_, layouts) in fits.items()}
    sure = {
        key: (layout, shape[layout.dim])
        for key, (shape, (layout, *others)) in fits.items()
        if isinstance(layout, Blocks) and not others
    }
    neighbours, likely = set(sure.values()), set()
    for key in fits.keys() - sure.keys():
        shape, layouts = fits[key]
        alike = [x for x in layouts if isinstance(x, Blocks) and (x, shape[x.dim]) in neighbours]
        if len(alike) == 1:
            chosen[key] = alike[0]
            likely.add(key)
    return chosen, frozenset(likely), frozenset(fits.keys() - sure.keys() - likely)


def _climb(
    graph: Graph, known: dict[Node, Fits | None]
) -> tuple[set[Node], list[tuple[Node, int]], list[Node]]:
    """From the parameters upwards: nodes of parameters alone, uses at the frontier, and doubts."""
    between: set[Node] = set(graph.leaves.values())
    uses: list[tuple[Node, int]] = []
    unknown: list[Node] = []
    for node in graph.order:
        from_parameters = [i for i, (b, _) in enumerate(node.next_functions) if b in between]
        if not from_parameters:
            continue
        if node in known:
            if known[node] is None:
                between.add(node)
            else:
                uses += [(node, index) for index in from_parameters]
        elif _of_parameters_alone(graph, node, between):
            between.add(node)
        else:
            unknown.append(node)
    return between, uses, unknown


def _unknown(graph: Graph, known: dict[Node, Fits | None], unknown: list[Node]) -> list[Node]:
    """What to look at in one pass: the doubts, and those that follow if they are of parameters.

    All of them; or one alone, as a table of positions that is added to one of tokens.
    """
    doubtful: dict[Node, Fits | None] = {
        node: None for node in unknown if _could_be_of_parameters_alone(node)
    }
    following = _climb(graph, known | doubtful)[2] if doubtful else []
    meetings = [user for node in doubtful for user in _meetings(graph, node)]
    return list(dict.fromkeys([*unknown, *following, *meetings]))


def _meetings(graph: Graph, node: Node) -> list[Node]:
    """The operations in which a result, or what is made of it alone, first meets another."""
    alone, found = [node], list[Node]()
    while alone:
        for user, _ in graph.users.get(alone.pop(), ()):
            (found if len(user.next_functions) > 1 else alone).append(user)
    return found


def _could_be_of_parameters_alone(node: Node) -> bool:
    """Whether no data is seen to enter here: a table that is looked up, perhaps by the data."""
    return operation(node) in HIDDEN_INPUTS | SPREADING or is_custom(node)


def _of_parameters_alone(graph: Graph, node: Node, between: set[Node]) -> bool:
    """Whether it is plain that no data enters here. Being wrong costs time, never exactness."""
    if not all(below in between for below, _ in node.next_functions):
        return False
    name = operation(node)
    if name in SPREADING:
        # a class token repeated for every sample is small; a weight repeated for them is not
        users = graph.users.get(node, ())
        return shape_of(node).numel() > 4 * max((shape_of(u).numel() for u, _ in users), default=0)
    return name not in HIDDEN_INPUTS and not is_custom(node)


def _results(graph: Graph, nodes: Iterable[Node]) -> list[Output]:
    """All results of these nodes that are used."""
    return [(node, output) for node in nodes for output in graph.outputs(node)]


def _probe(
    graph: Graph, wanted: Collection[Output], weights: list[Tensor]
) -> dict[Output, list[Tensor]]:
    """For each result, its gradient in each of the probing passes; none where nothing arrives."""
    passes = [gradients_at(graph, over_all_scores(graph, each), wanted) for each in weights]
    return {
        result: [g for g in gradients if g is not None]
        for result, *gradients in zip(wanted, *passes)
    }


def _fits(
    graph: Graph,
    nodes: Iterable[Node],
    arrived: Mapping[Output, list[Tensor]],
    weights: list[Tensor],
    zero: set[Output],
) -> dict[Node, Fits | None]:
    """For each node, the layouts that fit the gradient of each result; None if not separable.

    `zero` is filled with the results of which every gradient is zero: what fits says nothing there.
    """
    found: dict[Node, Fits | None] = {}
    for node, output in _results(graph, nodes):
        fits = found.setdefault(node, {})
        if fits is None or not arrived[node, output]:
            continue
        layouts = find_layouts(arrived[node, output], weights, graph.precision)
        if layouts:
            fits[output] = layouts
            if len(layouts) > 1 and not any(bool(g.any()) for g in arrived[node, output]):
                zero.add((node, output))
        else:
            found[node] = None
    return found
