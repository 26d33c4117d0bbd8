"""One backward pass in which every use of every parameter leaves its Σₖ|gₖ|ᵖ behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import Node

from retain.per_sample import devices
from retain.per_sample.carried import carry_back
from retain.per_sample.contributions import Contribution, Factors, OneByOne, SampleGradients
from retain.per_sample.frontier import HIDDEN_INPUTS
from retain.per_sample.graph import Graph, Output
from retain.per_sample.groups import Group
from retain.per_sample.nodes import UnaskableError, call, operation, shape_of
from retain.per_sample.passes import Grads, backward_pass
from retain.per_sample.plan import Habits, Plan
from retain.per_sample.pull_back import (
    RESHAPING,
    chain,
    is_transpose,
    moves_and_scales,
    pull_back,
    pull_back_several,
)
from retain.per_sample.rules import COMPLEX_RULES, RULES
from retain.per_sample.rules.elementwise import rows
from retain.per_sample.rules.linear import shared_bmm
from retain.per_sample.summing import sum_contributions
from retain.per_sample.sums import Sum
from retain.per_sample.uses import ParameterUse, edge_of
from retain.per_sample.wandering import ELEMENTWISE
from retain.pieces import BLOCK, together


@dataclass(eq=False)
class Masked(OneByOne):
    """gₖ from a backward that is masked to sample k; asked when the pass is over.

    Where an operation goes element by element, its backward says of every element of its result
    what it contributes, before that is summed over what was broadcast: `whole` gives all samples'.
    """

    whole: Callable[[], SampleGradients | None]


See = Callable[[int, Grads], None]  # takes in what arrives at a node, given by its position
# a contribution, and the result whose gradient it is part of
EdgeContribution = tuple[Output, Contribution]


class PerSampleBackward:
    """Runs a plan on a graph, adding to the sums of the parameters."""

    def __init__(
        self, graph: Graph, plan: Plan, sums: Mapping[str, Sum], samples: int, habits: Habits
    ) -> None:
        self.graph, self.plan, self.sums, self.samples = graph, plan, sums, samples
        self.habits = habits
        self.routes: dict[str, str] = {}
        self.unaskable: set[str] = set()  # parameters that have to be looped over
        self._by_node: dict[Node, list[tuple[Group, ParameterUse]]] = {}
        for group in plan.groups:
            for use in group.uses:
                self._by_node.setdefault(graph.order[use.node], []).append((group, use))

    def run(
        self,
        weights: Tensor,
        *,
        also: See | None = None,
        keep: bool = True,
    ) -> None:
        """Add Σₖ|∂(weights·s)ₖ/∂θ|ᵖ to every sum; `also` sees every gradient at the frontier.

        The graph may be let go on the way, unless `keep`: that saves as much memory as in an
        ordinary backward pass.
        """
        with devices.one_look():
            self._run(weights, also, keep)

    def _run(self, weights: Tensor, also: See | None, keep: bool) -> None:
        waiting = {group: len(group.uses) for group in self.plan.groups}
        contributions: dict[Group, list[EdgeContribution]] = {
            group: [] for group in self.plan.groups
        }

        def arrive(node: Node, grads: Grads) -> None:
            if also is not None:
                also(self.graph.position[node], grads)
            for group, use in self._by_node[node]:
                if any(g is not None for g in grads):
                    contributions[group].append(
                        _behind_transposes(*self._contribution(node, use, grads))
                    )
                waiting[group] -= 1
                if not waiting[group] and self._summed_as_it_is(group, contributions[group]):
                    del contributions[group]

        # What is pulled back needs the graph; whether anything is, the passes before have shown.
        self._pass(weights, arrive, keep=keep or self.habits.pulls_back is not False)
        self.habits.pulls_back = bool(contributions) or self.habits.pulls_back is True
        with torch.no_grad():
            # While autograd runs, a node's own backward leaves out what the pass does not need:
            # what has to be pulled back waits until the pass is over.
            for group, postponed in contributions.items():
                found = [(edge, _whole(contribution)) for edge, contribution in postponed]
                if found and not self._summed_as_it_is(group, found):
                    try:
                        self._pull_back(group, found)
                    except UnaskableError:
                        self.unaskable.update(group.names)

    def look(self, weights: Tensor, see: See) -> None:
        """Show the gradients at the frontier, and compute nothing else."""
        self._pass(weights, lambda node, grads: see(self.graph.position[node], grads))

    def _pass(
        self, weights: Tensor, arrive: Callable[[Node, Grads], None], *, keep: bool = True
    ) -> None:
        watch = {node: partial(arrive, node) for node in self._by_node}
        stops = [(self.graph.order[at], output) for at, output in self.plan.stops]
        with torch.no_grad():
            backward_pass(self.graph, weights, stops, watch, keep=keep)

    def _contribution(
        self, node: Node, use: ParameterUse, grads: Grads
    ) -> tuple[Output, Contribution]:
        """What one use contributes, and to which result's gradient."""
        edge = edge_of(self.graph, use)
        layout = self.plan.frontier.layouts.get((use.node, 0))
        grad = grads[0]
        once = [below for below in node.next_functions if below == node.next_functions[use.index]]
        plain = layout is not None and len(once) == 1
        if grad is not None and layout is not None and plain:
            name, real = operation(node), not grad.is_complex()
            if real and name == "Bmm" and (shared := self._shared(edge)) is not None:
                factors = shared_bmm(node, use.index, grad, layout)
                if factors is not None:
                    return shared, factors
            rule = (RULES if real else COMPLEX_RULES).get(name)
            contribution = rule(node, use.index, grad, layout, shape_of(*edge)) if rule else None
            if contribution is not None:
                return edge, contribution
        return edge, self._masked(node, use, grads)

    def _shared(self, edge: Output) -> Output | None:
        """Behind views, what was expanded into a batch of one and the same matrix."""
        node, _ = edge
        matrix = shape_of(*edge)[1:].numel()
        while operation(node) in RESHAPING:
            node = node.next_functions[0][0]  # type: ignore[assignment]
        below, output = node.next_functions[0] if node.next_functions else (None, 0)
        if operation(node) != "Expand" or below is None:
            return None
        return (below, output) if shape_of(below, output).numel() == matrix else None

    def _masked(self, node: Node, use: ParameterUse, grads: Grads) -> Masked:
        """Backward is linear: a sample's gradient is the backward of the gradient masked to it."""
        layouts = self.plan.frontier.layouts

        def gradient(sample: int) -> Tensor:
            alone = tuple(
                None if g is None else layouts[use.node, output].only(g, sample)
                for output, g in enumerate(grads)
            )
            target, total = node.next_functions[use.index], None
            for index, found in enumerate(call(node, alone)):
                # the same result may be used twice; its first use stands for all
                if node.next_functions[index] == target and found is not None:
                    total = found if total is None else total + found
            first = node.next_functions.index(target) == use.index
            if total is None or not first:
                return torch.zeros(shape_of(*edge_of(self.graph, use)), device=grads_device(grads))
            return total.to_dense() if total.is_sparse else total

        def whole() -> SampleGradients | None:
            grad, layout, edge = grads[0], layouts.get((use.node, 0)), edge_of(self.graph, use)
            twice = node.next_functions.count(node.next_functions[use.index]) > 1
            if grad is None or layout is None or twice or operation(node) not in ELEMENTWISE:
                return None
            found = node(grad)  # type: ignore[operator]
            found = found[use.index] if isinstance(found, (tuple, list)) else found
            if found is None or found.shape != grad.shape or found.is_complex():
                return None
            return rows(found, layout, shape_of(*edge))

        return Masked(gradient, "masked", whole)

    def _summed_as_it_is(self, group: Group, found: list[EdgeContribution]) -> bool:
        """Sum, if it is one parameter that is used as it is or transposed: no pulling back."""
        if len(group.names) > 1 or not found:
            return False
        leaf = self.graph.leaves[group.names[0]]
        if any(node is not leaf for (node, _), _ in found):
            return False
        contributions = [contribution for _, contribution in found]
        total = self.sums[group.names[0]]
        for contribution in contributions:
            if isinstance(contribution, OneByOne) and contribution.route == "masked":
                return False
            if (
                isinstance(contribution, Factors)
                and contribution.shape.numel() != total.total.numel()
            ):
                return False
        sum_contributions(contributions, self.samples, total)
        self.routes[group.names[0]] = _route(found)
        return True

    def _pull_back(self, group: Group, found: list[EdgeContribution]) -> None:
        if self._copying(group, found):
            self._pull_back_sums(found)
            pulled = False
        else:
            carried = self._carry_back(group, found)
            pulled = carried is None or carried > BLOCK  # numbers of all samples have their price
            if carried is None:
                self._pull_back_each(group, found)
        route = _route(found) + (", pulled back" if pulled else "")
        self.routes.update(dict.fromkeys(group.names, route))

    def _carry_back(self, group: Group, found: list[EdgeContribution]) -> int | None:
        """How many numbers were held for it, at most; None, and remembered, if it cannot."""
        if group in self.habits.asked:
            return None
        carried = carry_back(self.graph, self.plan.frontier, found, self.samples)
        if carried is None:
            self.habits.asked.add(group)
            return None
        for leaf, contributions in carried.items():
            sum_contributions(contributions, self.samples, self.sums[self._names[leaf]])
        every = [one for contributions in carried.values() for one in contributions]
        return max(
            (one.values.numel() for one in every if isinstance(one, SampleGradients)), default=0
        )

    def _copying(self, group: Group, found: list[EdgeContribution]) -> bool:
        """Whether sums can be pulled back; remembered unless the data decide what is copied."""
        edges = dict.fromkeys(edge for edge, _ in found)
        known = (group, frozenset((self.graph.position[node], output) for node, output in edges))
        if known in self.habits.copying:
            return self.habits.copying[known]
        nodes = chain(self.graph, self.plan.frontier, group)
        answer = moves_and_scales(self.graph, self.plan.frontier, edges, nodes)
        if HIDDEN_INPUTS.isdisjoint(map(operation, nodes)):
            self.habits.copying[known] = answer
        return answer

    def _pull_back_sums(self, found: list[EdgeContribution]) -> None:
        """|Jᵀg|ᵖ = (|J|ᵖ)ᵀ|g|ᵖ where J moves and scales: the sums take the way of a gradient."""
        power, sums = self._power, {}
        for edge in dict.fromkeys(edge for edge, _ in found):
            contributions = [contribution for e, contribution in found if e == edge]
            shape = shape_of(*edge)
            first = contributions[0]
            held = first.shape if isinstance(first, Factors) else shape
            total = Sum(held, self._dtype(edge), self.graph.scores.device, power)
            sum_contributions(contributions, self.samples, total)
            size = total.result() if power == 1 else total.result().sqrt_()
            sums[edge] = size.reshape(shape)
        for leaf, size in pull_back(self.graph, self.plan.frontier, sums).items():
            total = self.sums[self._names[leaf]]
            total.add_raised(size)

    def _pull_back_each(self, group: Group, found: list[EdgeContribution]) -> None:
        """Sample by sample, or several at a time where there is room."""
        edges = dict.fromkeys(edge for edge, _ in found)
        shapes = [shape_of(*edge) for edge in edges]
        shapes += [shape_of(self.graph.leaves[name]) for name in group.names]
        numbers = sum(shape.numel() for shape in shapes)
        device = self.graph.scores.device
        each = together(self.samples, numbers, devices.room(device) or BLOCK)
        for start in range(0, self.samples, each):
            stop = min(self.samples, start + each)
            grads = {
                edge: torch.zeros(
                    (stop - start, *shape_of(*edge)), dtype=self._dtype(edge), device=device
                )
                for edge in edges
            }
            for edge, contribution in found:
                contribution.add_samples(start, stop, grads[edge])
            pulled = pull_back_several(self.graph, self.plan.frontier, grads)
            for leaf, gradients in pulled.items():
                total = self.sums[self._names[leaf]]
                total.add(total.over_samples(gradients))

    @property
    def _names(self) -> dict[Node, str]:
        return {leaf: name for name, leaf in self.graph.leaves.items()}

    @property
    def _power(self) -> int:
        return next(iter(self.sums.values())).power

    def _dtype(self, edge: Output) -> torch.dtype:
        dtype: torch.dtype = edge[0]._input_metadata[edge[1]].dtype
        return dtype


def _whole(contribution: Contribution) -> Contribution:
    whole = contribution.whole() if isinstance(contribution, Masked) else None
    return contribution if whole is None else whole


def _behind_transposes(edge: Output, contribution: Contribution) -> EdgeContribution:
    """Factors of a transposed matrix as those of the matrix itself, where all its uses meet."""
    while isinstance(contribution, Factors) and is_transpose(edge[0]):
        below, output = edge[0].next_functions[0]
        if below is None:
            break
        edge, contribution = (below, output), contribution.transposed
    return edge, contribution


def _route(found: list[EdgeContribution]) -> str:
    return "+".join(sorted({contribution.route for _, contribution in found}))


def grads_device(grads: Grads) -> torch.device:
    """Where the gradients are."""
    return next(g.device for g in grads if g is not None)
