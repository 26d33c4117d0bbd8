"""Σₖ|gₖ| of the layers of one batch, in small buffers.

n samples, r rows (samples and positions together), i inputs, o outputs. δ = 2 σ(z) σ′(z), times
batch-norm's factor, is half a formula away from the gradient: gₖ = Σ_positions δ ⊗ y. What is the
same in all rows, 2 and batch-norm's factor, comes in as late as it can.

On an accelerator nothing waits for the device before the end of a batch: whether a layer's inputs
are free of negative numbers is taken for granted until a batch shows otherwise, which is looked up
for all layers at once; that batch is then repeated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from retain.local_rule.ownership import BATCH_FIRST, Ownership, row_dims
from retain.local_rule.watch import LayerUse, WatchedLayer
from retain.parameters import summed_in
from retain.per_sample import devices
from retain.per_sample.contributions import Contribution, Factors
from retain.per_sample.layout import Blocks
from retain.per_sample.rules.convolution import weight_contribution
from retain.per_sample.summing import sum_contributions
from retain.per_sample.sums import Sum, not_finite
from retain.pieces import together

# numbers that are taken together of inputs and outputs, within the last-level cache (measured with
# 64 channels at 56²: four of 16 samples at a time take 0.64 × as long as all)
TOGETHER = 1 << 21
GLANCE = 1 << 12  # numbers: of the first row, in which a negative one is looked for first


class Met(NamedTuple):
    """What has to be known of layers before a batch.

    Attributes:
        repeated: parameters that are used more than once in a forward pass.
        signed: layers whose inputs were not free of negative numbers, on an accelerator.
    """

    repeated: frozenset[str]
    signed: frozenset[LayerUse]

    def __or__(self, other: Met) -> Met:
        return Met(self.repeated | other.repeated, self.signed | other.signed)


NOTHING_YET = Met(frozenset(), frozenset())


class LocalSums:
    """Σₖ|gₖ| by name, batch after batch; the memory of the sums is kept."""

    def __init__(self) -> None:
        self._kept: dict[str, Sum] = {}
        self.clear(0, NOTHING_YET)

    def clear(self, samples: int, met: Met) -> None:
        """Begin a batch, knowing what was met in others."""
        self.samples = samples
        self._before = met
        # of inputs that were taken to have no negative ones
        self._lowest: dict[LayerUse, Tensor] = {}
        self._newly_repeated: set[str] = set()
        self._sums: dict[str, Sum] = {}
        self._uses: dict[str, list[Contribution]] = {}
        self._biases: dict[str, Tensor] = {}
        self._met: set[str] = set()

    def add(self, layer: WatchedLayer, owner: Ownership) -> None:
        """Add one use of a layer."""
        names = frozenset(layer.names)
        self._newly_repeated |= (self._met & names) - self._before.repeated
        self._met |= names
        if self._newly_repeated:
            return  # the pass has to be repeated anyhow
        alone = not self._before.repeated & names
        whole = [(layer, self.samples)]
        for part, samples in _parts(layer, owner, self.samples) if alone else whole:
            self._add_part(part, owner, samples, alone)

    def _add_part(self, layer: WatchedLayer, owner: Ownership, samples: int, alone: bool) -> None:
        rows = _rows(layer, owner, samples, alone)
        positive = self._positive(layer, rows) if alone else None
        if positive is not None:
            self._add_whole(layer, positive)
            return
        if layer.bias is not None:
            self._add_to_bias(layer.bias, _bias_rows(rows), alone)
        if layer.weight is None:
            return
        total = self._sum(layer.weight, layer.call.weight)
        if alone:
            _add_one_by_one(layer, rows, total)
        else:
            contribution = _contribution(layer, rows.deltas * rows.factor, rows)
            self._uses.setdefault(layer.weight, []).append(contribution)

    def newly_met(self) -> Met:
        """What the batch showed for the first time; it has to be repeated if that is anything."""
        signed: list[LayerUse] = []
        if self._lowest:
            first, *_ = lowest = list(self._lowest.values())
            # the device is waited for once
            negative = (torch.stack([one.to(first.device) for one in lowest]) < 0).tolist()
            signed = [use for use, found in zip(self._lowest, negative) if found]
        return Met(frozenset(self._newly_repeated), frozenset(signed))

    def result(self) -> dict[str, Tensor]:
        """The sums of the batch; they are overwritten by the next one's."""
        for name, contributions in self._uses.items():
            # several uses of one weight are summed within a sample before the absolute value
            sum_contributions(contributions, self.samples, self._sums[name])
        sums = {name: total.result() for name, total in self._sums.items()}
        self._biases = {name: each.abs().sum(0) for name, each in self._biases.items()}
        return sums | self._biases

    def not_finite(self) -> list[str]:
        """The names of the sums in `result()` with NaN or infinity in them."""
        return not_finite({**self._sums, **self._biases})

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

    def _positive(self, layer: WatchedLayer, rows: _Rows) -> _Rows | None:
        """Rows whose gradients need no |·| before they are summed over the samples, if any."""
        call, (inputs, deltas, _, blocks) = layer.call, rows
        waits = devices.room(inputs.device) is None  # whether a look at numbers costs no more
        # σσ′ says so, or else a look at it; batch-norm's factor came without its sign
        never = layer.activation is not None and layer.activation.never_negative
        if len(inputs) == blocks.samples and deltas[0].numel() == deltas.shape[1]:
            # one position: gₖ = δₖ ⊗ yₖ, so Σₖ|gₖ| is the batch's gradient with |δ| and |y|
            inputs = inputs if waits and _no_negative(inputs) else inputs.abs()
            return rows._replace(inputs=inputs, deltas=deltas if never else deltas.abs())
        if call.convolving is not None and call.weight.shape[1] == 1:
            return None  # separate channels: all samples' gradients are at hand at once, and small
        if waits:
            found = (never or _no_negative(deltas)) and _no_negative(inputs)
            return rows if found else None
        if not never or layer.layer_use in self._before.signed:
            return None
        self._lowest[layer.layer_use] = inputs.amin()
        return rows

    def _add_whole(self, layer: WatchedLayer, rows: _Rows) -> None:
        """Σₖ|gₖ| = Σₖ gₖ where nothing is negative: the batch's gradient."""
        call, (inputs, deltas, factor, _) = layer.call, rows
        total = None if layer.weight is None else self._sum(layer.weight, call.weight)
        if call.convolving is not None:
            bias = _add_convolution(layer, rows, total)
        else:
            deltas = deltas * factor
            if total is not None:
                factors = (inputs, deltas) if call.inputs_first else (deltas, inputs)
                total.add_product(*factors)
            bias = None if layer.bias is None else deltas.sum(0)
        if layer.bias is not None and bias is not None:
            self._add_to_bias(layer.bias, bias[None], True)

    def _add_to_bias(self, name: str, each: Tensor, alone: bool) -> None:
        # several uses are summed within a sample before the absolute value
        each = each.abs().sum(0, keepdim=True) if alone else each
        self._biases[name] = self._biases[name] + each if name in self._biases else each


class _Rows(NamedTuple):
    """A layer's rows, samples and positions in dimension 0. Not to be written to: the model's own.

    δ = deltas · factor.
    """

    inputs: Tensor  # [r, i, …]
    deltas: Tensor  # [r, o, …], σ(z) σ′(z)
    factor: Tensor  # [o or 1, …]
    blocks: Blocks  # where the samples are


def _rows(layer: WatchedLayer, owner: Ownership, samples: int, alone: bool) -> _Rows:
    wide = summed_in(layer.call.weight.dtype)
    inputs, deltas = layer.inputs.to(wide), layer.half_slope(wide)
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


def _parts(layer: WatchedLayer, owner: Ownership, samples: int) -> list[tuple[WatchedLayer, int]]:
    """The layer for as many samples at a time as stay in the cache, and how many these are."""
    kept, inputs = layer.kept, layer.inputs
    output = layer.output if kept is None else kept
    size, most = inputs.numel() + output.numel(), max(TOGETHER, 4 * layer.call.weight.numel())
    cached = devices.room(inputs.device) is None
    if not cached or size <= 2 * most or owner != BATCH_FIRST:
        return [(layer, samples)]
    each, positions = together(samples, size // samples, most), len(inputs) // samples
    parts = [
        replace(layer, inputs=y, output=z, written=None if kept is None else z)
        for y, z in zip(inputs.split(each * positions), output.split(each * positions))
    ]
    return [(part, len(part.inputs) // positions) for part in parts]


def _bias_rows(rows: _Rows) -> Tensor:
    """∂‖y_l‖²/∂b of each sample [n, o]: δ summed over its positions."""
    _, deltas, factor, blocks = rows
    pixels = deltas.flatten(2).sum(2) if deltas.ndim > 2 else deltas
    return blocks.split(pixels).sum((0, 2)) * factor.flatten()


def _factor(layer: WatchedLayer, deltas: Tensor, alone: bool) -> Tensor:
    """2 s for each output channel: what σσ′ lacks of δ = ∂‖y_l‖²/∂z, y_l = σ(s z + …)."""
    if layer.scale is None:
        factor = deltas.new_full((1,), 2.0)  # made there: a copy would wait for the device
    else:
        # A channel's sign is the same in every sample, so that |s| gives the same |gₖ|; it keeps δ
        # from being negative. Uses that are summed before |·| need the sign itself.
        factor = 2 * layer.scale.to(deltas.dtype)
        factor = factor.abs() if alone else factor
    return factor.view(-1, *[1] * (deltas.ndim - 2))


def _no_negative(tensor: Tensor) -> bool:
    # a glance at a few numbers spares most of those with negative ones the pass over all
    few = tensor[:1].flatten()[:GLANCE] if tensor.numel() > 64 * GLANCE else tensor
    return bool(few.amin() >= 0) and (few is tensor or bool(tensor.amin() >= 0))


def _add_convolution(layer: WatchedLayer, rows: _Rows, total: Sum | None) -> Tensor | None:
    """Add the batch's gradient; returns that of the bias, if it is wanted, which comes with it."""
    inputs, deltas, factor, _ = rows
    weight, settings = layer.call.weight.detach().to(inputs.dtype), layer.call.convolving
    assert settings is not None
    late = _factor_is_of_rows(layer, factor)
    bias: Tensor | None
    _, found, bias = torch.ops.aten.convolution_backward(
        *(deltas if late else deltas * factor, inputs, weight, deltas.shape[1:2], *settings),
        [False, total is not None, layer.bias is not None],
    )
    if total is not None and late and total.empty:
        matrix, total.empty = total.matrix(len(found)), False
        torch.mul(found.view(matrix.shape), factor.view(-1, 1), out=matrix)
    elif total is not None:
        total.add(found * factor.view(-1, *[1] * (found.ndim - 1)) if late else found)
    return bias * factor.flatten() if late and bias is not None else bias


def _add_one_by_one(layer: WatchedLayer, rows: _Rows, total: Sum) -> None:
    """Add Σₖ|gₖ| with the factor on what is smaller, pixels or weights."""
    deltas, factor, samples = rows.deltas, rows.factor, rows.blocks.samples
    fewer = total.empty and total.total.numel() < deltas.numel()
    if fewer and _factor_is_of_rows(layer, factor):
        sum_contributions([_contribution(layer, deltas, rows)], samples, total)
        total.matrix(len(total.total)).mul_(factor.view(-1, 1))
    else:
        sum_contributions([_contribution(layer, deltas * factor, rows)], samples, total)


def _factor_is_of_rows(layer: WatchedLayer, factor: Tensor) -> bool:
    """Whether the weight's rows can take the factor, which come later than the pixels."""
    call = layer.call
    outputs_first = not (call.inputs_first or (call.convolving and call.convolving.transposed))
    return factor.numel() == 1 or outputs_first


def _contribution(layer: WatchedLayer, deltas: Tensor, rows: _Rows) -> Contribution:
    call, inputs, blocks = layer.call, rows.inputs, rows.blocks
    if call.convolving is not None:
        weight = call.weight.detach().to(inputs.dtype)
        return weight_contribution(inputs, deltas, weight, call.convolving, blocks)
    left, right = (inputs, deltas) if call.inputs_first else (deltas, inputs)
    return Factors(left, right, blocks)
