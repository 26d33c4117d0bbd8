"""Σₖ|gₖ| of the layers of one batch, in small buffers.

n samples, r rows (samples and positions together), i inputs, o outputs. δ = 2 σ(z) σ′(z), times
batch-norm's factor, is half a formula away from the gradient: gₖ = Σ_positions δ ⊗ y. What is the
same in all rows, 2 and batch-norm's factor, comes in as late as it can.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retain.estimators.local.ownership import Ownership, row_dims
from retain.estimators.local.watch import Layer
from retain.per_sample.layout import Blocks
from retain.per_sample.rules.convolution import weight_gradient, weight_term
from retain.per_sample.sums import Sum
from retain.per_sample.terms import Factors, Term, sum_terms


class LocalSums:
    """Σₖ|gₖ| by name, batch after batch; the memory of the sums is kept."""

    def __init__(self) -> None:
        self.repeated: set[str] = set()  # used more than once in a forward pass
        self._kept: dict[str, Sum] = {}
        self.clear(0)

    def clear(self, samples: int) -> None:
        """Begin a batch."""
        self.samples = samples
        self.newly_repeated: set[str] = set()
        self._sums: dict[str, Sum] = {}
        self._uses: dict[str, list[Term]] = {}
        self._biases: dict[str, Tensor] = {}
        self._met: set[str] = set()

    def add(self, layer: Layer, owner: Ownership) -> None:
        """Add one use of a layer."""
        self.newly_repeated |= (self._met & set(layer.names)) - self.repeated
        self._met |= set(layer.names)
        if self.newly_repeated:
            return  # the pass has to be repeated anyhow
        alone = not self.repeated & set(layer.names)
        rows = _rows(layer, owner, self.samples, alone)
        if layer.bias is not None:
            self._add_bias(layer.bias, rows)
        if layer.weight is None:
            return
        total = self._sum(layer.weight, layer.call.weight)
        if alone:
            _add_weight(layer, rows, total)
        else:
            term = _term(layer, rows)
            self._uses.setdefault(layer.weight, []).append(term)

    def result(self) -> dict[str, Tensor]:
        """The sums of the batch; they are overwritten by the next one's."""
        for name, terms in self._uses.items():
            # several uses of one weight are summed within a sample before the absolute value
            sum_terms(terms, self.samples, self._sums[name])
        sums = {name: total.result() for name, total in self._sums.items()}
        sums |= {name: each.abs().sum(0) for name, each in self._biases.items()}
        return sums

    def drop(self, names: set[str]) -> None:
        """Forget what was added to these parameters."""
        for name in names:
            for held in (self._sums, self._uses, self._biases):
                held.pop(name, None)

    def _sum(self, name: str, weight: Tensor) -> Sum:
        if name not in self._kept:
            self._kept[name] = Sum(weight.shape, weight.dtype, weight.device, power=1)
        if name not in self._sums:
            self._kept[name].clear()
            self._sums[name] = self._kept[name]
        return self._sums[name]

    def _add_bias(self, name: str, rows: _Rows) -> None:
        # ∂‖y_l‖²/∂b = δ summed over the positions of a sample: [n, o]
        _, deltas, factor, blocks = rows
        pixels = deltas.flatten(2).sum(2) if deltas.ndim > 2 else deltas
        each = blocks.split(pixels).sum((0, 2)) * factor.flatten()
        self._biases[name] = self._biases[name] + each if name in self._biases else each


class _Rows(NamedTuple):
    """A layer's rows, samples and positions in dimension 0. Not to be written to: the model's own.

    δ = deltas · factor.
    """

    inputs: Tensor  # [r, i, …]
    deltas: Tensor  # [r, o, …], σ(z) σ′(z)
    factor: Tensor  # [o or 1, …]
    blocks: Blocks  # where the samples are


def _rows(layer: Layer, owner: Ownership, samples: int, alone: bool) -> _Rows:
    inputs, output = layer.inputs, layer.output
    wide = torch.float64 if layer.call.weight.dtype == torch.float64 else torch.float32
    inputs, output = inputs.to(wide), output.to(wide)
    deltas = output if layer.activation is None else layer.activation.half_slope(output)
    if owner.order == "shared":
        inputs, deltas = (
            inputs.expand(samples, *inputs.shape),
            deltas.expand(samples, *deltas.shape),
        )
        owner = Ownership(0, "first")
        if layer.call.convolving is not None:
            inputs, deltas = inputs.flatten(0, 1), deltas.flatten(0, 1)
    dims = row_dims(inputs, layer.call.convolving is not None)
    blocks = owner.blocks(tuple(inputs.shape[:dims]), samples)
    inputs, deltas = inputs.flatten(0, dims - 1), deltas.flatten(0, dims - 1)
    return _Rows(inputs, deltas, _factor(layer, deltas, alone), blocks)


def _factor(layer: Layer, deltas: Tensor, alone: bool) -> Tensor:
    """2 s for each output channel: what σσ′ lacks of δ = ∂‖y_l‖²/∂z, y_l = σ(s z + …)."""
    factor = torch.tensor([2.0], dtype=deltas.dtype, device=deltas.device)
    if layer.scale is not None:
        # A channel's sign is the same in every sample, so that |s| gives the same |gₖ|; it keeps δ
        # from being negative. Uses that are summed before |·| need the sign itself.
        scale = layer.scale.to(deltas.dtype)
        factor = factor * (scale.abs() if alone else scale)
    return factor.view(-1, *[1] * (deltas.ndim - 2))


def _add_weight(layer: Layer, rows: _Rows, total: Sum) -> None:
    call, (inputs, deltas, factor, blocks) = layer.call, rows
    one_position = len(inputs) == blocks.samples and deltas[0].numel() == deltas.shape[1]
    # separate channels: all samples' gradients are at hand at once, and small
    separate = call.convolving is not None and call.weight.shape[1] == 1
    if one_position:
        # gₖ = δₖ ⊗ yₖ, so Σₖ|gₖ| is the batch's gradient with |δ| and |y|
        positive = inputs if _no_negative(inputs) else inputs.abs()
        _add_batch(layer, positive, deltas.abs(), factor, total)
    elif not separate and _no_negative_deltas(layer, deltas) and _no_negative(inputs):
        # nothing is negative: Σₖ|gₖ| = Σₖ gₖ, the batch's gradient
        _add_batch(layer, inputs, deltas, factor, total)
    else:
        sum_terms([_term(layer, rows)], blocks.samples, total)


def _add_batch(layer: Layer, inputs: Tensor, deltas: Tensor, factor: Tensor, total: Sum) -> None:
    call = layer.call
    if call.convolving is not None:
        weight = call.weight.detach().to(inputs.dtype)
        rows = factor.numel() == 1 or not call.convolving.transposed
        found = weight_gradient(
            inputs, deltas if rows else deltas * factor, weight, call.convolving
        )
        # the factor belongs to rows of the weight, which are fewer than the pixels
        total.add(found.mul_(factor.view(-1, *[1] * (found.ndim - 1))) if rows else found)
    elif call.inputs_first:
        total.add_product(inputs, deltas * factor)
    else:
        total.add_product(deltas * factor, inputs)


def _term(layer: Layer, rows: _Rows) -> Term:
    call, inputs, blocks = layer.call, rows.inputs, rows.blocks
    deltas = rows.deltas * rows.factor
    if call.convolving is not None:
        weight = call.weight.detach().to(inputs.dtype)
        return weight_term(inputs, deltas, weight, call.convolving, blocks)
    left, right = (inputs, deltas) if call.inputs_first else (deltas, inputs)
    return Factors(left, right, blocks)


def _no_negative_deltas(layer: Layer, deltas: Tensor) -> bool:
    """Whether σσ′ says so, or else a look at them; batch-norm's factor came without its sign."""
    return bool(layer.activation and layer.activation.never_negative) or _no_negative(deltas)


def _no_negative(tensor: Tensor) -> bool:
    return not bool((tensor[:1] < 0).any()) and bool(tensor.amin() >= 0)
