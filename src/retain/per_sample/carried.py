"""Contributions brought back from the frontier in the form in which they are held.

What lies between a parameter and its frontier is asked once for every sample (pull_back.py) only
where it has to be. Gₖ = Lₖᵀ Rₖ at the result of

* Y = A B is Lₖᵀ (Rₖ Bᵀ) for A and (Lₖ A)ᵀ Rₖ for B: factors again;
* Y = A ∘ b is A ∘ Gₖ for b, summed over what that was broadcast along: weighed (weighed.py);
* Y = A + B is Gₖ for both.

And gradients that are held for every sample go through any operation, all samples together, as long
as they do not grow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from retain.parameters import summed_in
from retain.per_sample.contributions import Contribution, Factors, SampleGradients
from retain.per_sample.frontier import Frontier
from retain.per_sample.graph import Graph, Output
from retain.per_sample.layout import Owners
from retain.per_sample.nodes import call, operation, shape_of
from retain.per_sample.pull_back import RESHAPING, are_long, is_transpose
from retain.per_sample.weighed import Weighed
from retain.pieces import BLOCK

HELD = 1 << 22  # numbers: gradients of all samples that may be held at once, whatever they are of

InputContributions = list[Contribution | None]  # for each input of an operation
CarryRule = Callable[[Any, Contribution], InputContributions | None]


def carry_back(
    graph: Graph, frontier: Frontier, found: Sequence[tuple[Output, Contribution]], samples: int
) -> dict[Node, list[Contribution]] | None:
    """What is contributed to each parameter; None where some operation would need every sample."""
    arrived: dict[Node, list[Contribution]] = {}
    leaves = set(graph.leaves.values())
    at_leaves: dict[Node, list[Contribution]] = {}

    def arrive(node: Node, output: int, contribution: Contribution) -> bool:
        if output or not isinstance(contribution, (Factors, SampleGradients, Weighed)):
            return False
        if isinstance(contribution, Factors) and isinstance(contribution.layout, Owners):
            return False
        arrived.setdefault(node, []).append(contribution)
        return True

    if not all(arrive(node, output, one) for (node, output), one in found):
        return None
    while arrived:
        node = max(arrived, key=graph.position.__getitem__)
        contributions = _met(arrived.pop(node))
        if node in leaves:
            at_leaves[node] = [_shaped(one, shape_of(node)) for one in contributions]
            continue
        for one in contributions:
            carried = _through(node, one, samples)
            if carried is None:
                return None
            for (below, output), new in zip(node.next_functions, carried):
                wanted = below is not None and graph.position[below] in frontier.between
                if wanted and new is not None and not arrive(below, output, new):  # type: ignore[arg-type]
                    return None
    return at_leaves


def _met(contributions: list[Contribution]) -> list[Contribution]:
    """Those that are held for every sample, added up; and the others."""
    rows = [one for one in contributions if isinstance(one, SampleGradients)]
    others = [one for one in contributions if not isinstance(one, SampleGradients)]
    if len(rows) < 2:
        return contributions
    shape = rows[0].values.shape
    values = rows[0].values + rows[1].values.view(shape)
    for one in rows[2:]:
        values += one.values.view(shape)
    return [SampleGradients(values, rows[0].route), *others]


def _shaped(contribution: Contribution, shape: torch.Size) -> Contribution:
    if not isinstance(contribution, SampleGradients):
        return contribution
    return SampleGradients(contribution.values.reshape(-1, *shape), contribution.route)


def _through(node: Node, contribution: Contribution, samples: int) -> InputContributions | None:
    """What becomes of a contribution to an operation's result; None if that is not known."""
    rule = RULES.get(operation(node))
    if isinstance(contribution, Weighed) and contribution.summed and rule is not _moved:
        held = _held(contribution, contribution.shape, samples, HELD)
        if held is None:
            return None
        contribution = held
    shaped = _shaped(contribution, shape_of(node))
    carried = None if rule is None else rule(node, shaped)
    if carried is None:
        rows = _held(shaped, shape_of(node), samples, BLOCK)
        return None if rows is None else _asked(node, rows)
    return carried


def _held(
    contribution: Contribution, shape: torch.Size, samples: int, most: int
) -> SampleGradients | None:
    """The gradients themselves, of every sample, if they are not more than so many numbers."""
    if isinstance(contribution, SampleGradients):
        return contribution
    if samples * shape.numel() > most:
        return None
    left, _ = _sides(contribution)
    values = left.new_zeros(samples, *shape)
    contribution.add_samples(0, samples, values)
    return SampleGradients(values, contribution.route)


def _asked(node: Node, rows: SampleGradients) -> InputContributions | None:
    """The node's own backward, of every sample together."""
    below = [edge for edge in node.next_functions if edge[0] is not None]
    largest = max(shape_of(node, output).numel() for node, output in below)  # type: ignore[arg-type]
    if len(rows.values) * largest > max(HELD, rows.values.numel()):
        return None
    present = [grad is not None for grad in call(node, (rows.values[0],))]

    def backward(grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(found for found in call(node, (grad,)) if found is not None)

    try:
        if are_long(rows.values):
            of_samples = iter([torch.stack(each) for each in zip(*map(backward, rows.values))])
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")
                of_samples = iter(torch.func.vmap(backward)(rows.values))
    except (RuntimeError, ValueError, NotImplementedError):
        return None  # an operation that does not know batches of gradients
    return [SampleGradients(next(of_samples), rows.route) if there else None for there in present]


# ---- what is known of single operations ----


def _moved(node: Any, contribution: Contribution) -> InputContributions | None:
    """The same elements in the same order."""
    if isinstance(contribution, SampleGradients) and operation(node) not in RESHAPING:
        return None
    return [contribution, *[None] * (len(node.next_functions) - 1)]


def _transposed(node: Any, contribution: Contribution) -> InputContributions | None:
    factors = isinstance(contribution, Factors) and contribution.shape == shape_of(node)
    return [contribution.transposed] if factors and is_transpose(node) else None  # type: ignore[attr-defined]


def _sum(node: Any, contribution: Contribution) -> InputContributions | None:
    """Y = a ± α b."""
    alpha = node._saved_alpha if operation(node) == "Add" else -node._saved_alpha
    return _weigh(node, contribution, [1, alpha])


def _product(node: Any, contribution: Contribution) -> InputContributions | None:
    """Y = a b."""
    return _weigh(node, contribution, [node._saved_other, node._saved_self])


def _quotient(node: Any, contribution: Contribution) -> InputContributions | None:
    """Y = a / b."""
    a, b = node._saved_self, node._saved_other
    return _weigh(node, contribution, [1 / b, None if a is None else -a / b.square()])


def _spread(node: Any, contribution: Contribution) -> InputContributions | None:
    """Y = a, repeated by broadcasting."""
    return _weigh(node, contribution, [1])


def _bent(node: Any, contribution: Contribution) -> InputContributions | None:
    """Y = f(a), element by element."""
    if isinstance(contribution, SampleGradients):
        return None
    like = _sides(contribution)[0]
    (slope,) = call(node, (like.new_ones(shape_of(node)),))
    return _weigh(node, contribution, [slope])


def _weigh(
    node: Node, contribution: Contribution, weights: list[Tensor | float | None]
) -> InputContributions | None:
    """For each input its weight times what is contributed, summed over what it was repeated for."""
    carried: InputContributions = []
    for (below, output), weight in zip(node.next_functions, weights):
        if below is None or weight is None:
            carried.append(None)
            continue
        found = _weighed(contribution, weight, shape_of(node), shape_of(below, output))
        if found is None:
            return None
        carried.append(found)
    return carried


def _weighed(
    contribution: Contribution, weight: Tensor | float, shape: torch.Size, below: torch.Size
) -> Contribution | None:
    if isinstance(contribution, SampleGradients):
        lead = len(shape) - len(below)
        over = [1 + d for d, size in enumerate(shape) if d < lead or below[d - lead] == 1 != size]
        values = contribution.values * weight
        values = values.sum(over, keepdim=True) if over else values
        return SampleGradients(values.reshape(-1, *below), contribution.route)
    if not isinstance(weight, Tensor) or weight.ndim == 0:  # one of autograd's own may be a number
        weight = _sides(contribution)[0].new_ones(()) * weight
    if isinstance(contribution, Weighed):
        full = contribution.weights.reshape(shape) * weight
        return Weighed.of(contribution.factors, full, below)
    assert isinstance(contribution, Factors)
    if below.numel() == shape.numel() and contribution.shape == shape:
        left, right = _sides(contribution)
        # a scale of every output, or of every input, is one of Lₖ or of Rₖ
        if weight.ndim == 0 or weight.shape[-1] == 1:
            return Factors(left * weight.reshape(-1), right, None, contribution.route)
        if weight.ndim == 1 or weight.shape[0] == 1:
            return Factors(left, right * weight.reshape(-1), None, contribution.route)
    return Weighed.of(contribution, weight.expand(shape), below)


def _matrices(node: Any, contribution: Contribution) -> InputContributions | None:
    """Y = A B, or β C + α A B:  ∂/∂A = G Bᵀ and ∂/∂B = Aᵀ G."""
    added = operation(node) == "Addmm"
    a, b = (node._saved_mat1 if added else node._saved_self), node._saved_mat2
    alpha = node._saved_alpha if added else 1
    of_a: Contribution | None = None
    of_b: Contribution | None = None
    if isinstance(contribution, Factors) and contribution.shape == shape_of(node):
        left, right = _sides(contribution)
        route = contribution.route
        if b is not None:
            of_a = Factors(left, alpha * right @ b.mT.to(right.dtype), None, route)
        if a is not None:
            of_b = Factors(alpha * left @ a.to(left.dtype), right, None, route)
    elif isinstance(contribution, SampleGradients):
        values = alpha * contribution.values
        n, p, _ = values.shape
        if b is not None:
            product = n * p * len(b)
            if product <= max(HELD, values.numel()):
                of_a = SampleGradients(values @ b.mT.to(values.dtype), contribution.route)
            else:
                rows_qk = b.mT.to(values.dtype).expand(n, -1, -1)
                of_a = Factors(values.mT, rows_qk, None, "linear")
        if a is not None:
            of_b = Factors(a.to(values.dtype).expand(n, -1, -1), values, None, "linear")
    else:
        return None
    if not added:
        return [of_a, of_b]
    bias = _weigh(node, contribution, [node._saved_beta])
    return None if bias is None else [*bias, of_a, of_b]


def _sides(contribution: Contribution) -> tuple[Tensor, Tensor]:
    factors = contribution.factors if isinstance(contribution, Weighed) else contribution
    assert isinstance(factors, Factors)
    left, right = factors.positions
    wide = summed_in(left.dtype)
    return left.to(wide), right.to(wide)


RULES: dict[str, CarryRule] = {
    **dict.fromkeys((*RESHAPING, "Alias", "Clone", "Contiguous", "ToCopy"), _moved),
    **dict.fromkeys(("T", "Transpose", "Permute"), _transposed),
    **dict.fromkeys(("Add", "Sub"), _sum),
    **dict.fromkeys(("Mm", "Addmm"), _matrices),
    **dict.fromkeys(("Exp", "Log", "Tanh", "Sigmoid", "Softplus", "Relu", "Neg"), _bent),
    "Mul": _product,
    "Div": _quotient,
    "Expand": _spread,
}
