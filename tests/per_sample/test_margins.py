"""How far noise lies below what probing allows, and wrong layouts above it: both margins.

Run with `-s` to see them. Noise is that of a card, played on the CPU; in half precision, the last
bit of some numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from retain.borrowed import borrowed
from retain.per_sample.frontier import Frontier, find_frontier
from retain.per_sample.graph import Graph
from retain.per_sample.layout import Blocks, find_layouts, probe_weights, verifying_weights
from retain.per_sample.passes import gradients_at, over_all_scores
from retain.per_sample.precision import Precision
from retain.per_sample.switches import unrounded

from .card import GpuLike, tf32_allowed

# noise stays so many times below the tolerance, what is wrong so many times above it; of bfloat16,
# with its 8 bits, 513 samples probed together are as many as can be (the engine probes three)
BELOW = {torch.float64: 1e5, torch.float32: 100, torch.float16: 4, torch.bfloat16: 1}
ABOVE = {torch.float64: 1e7, torch.float32: 100, torch.float16: 5, torch.bfloat16: 2}
SIZES = [2, 3, 5, 17, 64, 513]


class Setting(NamedTuple):
    """In what everything is computed."""

    dtype: torch.dtype
    autocast: torch.dtype | None
    tf32: bool


SETTINGS = {
    "float64": Setting(torch.float64, None, False),
    "float32": Setting(torch.float32, None, False),
    "float32 with TF32": Setting(torch.float32, None, True),
    "bfloat16 autocast": Setting(torch.float32, torch.bfloat16, False),
    "float16 autocast": Setting(torch.float32, torch.float16, False),
}


class Card(GpuLike):
    """Half precision too: sums are made in float32 there, and seldom round to the next number."""

    SELDOM = 0.1  # of the numbers: far more than a float32 sum in another order makes

    def _wandered(self, one: Any) -> Any:
        if not isinstance(one, Tensor) or one.dtype not in (torch.bfloat16, torch.float16):
            return super()._wandered(one)
        moved = torch.rand(one.shape, generator=self.chance) < self.SELDOM
        up = torch.rand(one.shape, generator=self.chance) < 0.5
        to = torch.where(up, torch.inf, -torch.inf).to(one.dtype)
        return torch.where(moved & (one != 0), torch.nextafter(one, to), one)


class Net(nn.Module):
    """Images, then tokens [n·T, d], then [T·n, d], then one row per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6)
        self.tokens, self.steps = nn.Linear(6, 7), nn.Linear(7, 5)
        self.hidden, self.head = nn.Linear(45, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        h = torch.tanh(self.norm(self.convolution(x)))
        h = h.flatten(2).transpose(1, 2).flatten(0, 1)
        h = torch.tanh(self.tokens(h)).view(n, -1, 7).transpose(0, 1).flatten(0, 1)
        h = torch.tanh(self.steps(h)).view(-1, n, 5).transpose(0, 1).flatten(1)
        out: Tensor = self.head(torch.tanh(self.hidden(h)))
        return out


class Probed(NamedTuple):
    """Gradients at the frontier, and at the parameters, in the passes of probing."""

    precision: Precision
    weights: list[Tensor]
    frontier: Frontier
    apart: list[tuple[Blocks, list[Tensor]]]
    summed: list[list[Tensor]]
    verifying: Tensor
    verified: list[tuple[Blocks, Tensor, Tensor]]


def _probed(setting: Setting, n: int) -> Probed:
    torch.manual_seed(n)
    model, x = Net().to(setting.dtype), torch.randn(n, 2, 5, 5, dtype=setting.dtype)
    with ExitStack() as stack:
        for context in (borrowed(model), Card(tf32=setting.tf32), tf32_allowed(setting.tf32)):
            stack.enter_context(context)
        with torch.autocast("cpu", setting.autocast, enabled=setting.autocast is not None):
            out = model(x)
        out = out if out.dtype.itemsize >= 4 else out.float()
        size = 2.0**6 if setting.autocast == torch.float16 else 1.0  # as the engine scales it
        scores = out.square().sum(1) * size
        graph = Graph(scores, dict(model.named_parameters()), out.detach())
        precision = graph.precision
        weights = probe_weights(n, precision, scores.dtype, scores.device)
        stack.enter_context(unrounded())
        frontier = find_frontier(graph, weights, {p.data_ptr() for p in model.parameters()})
        at = [(graph.order[node], output) for node, output in frontier.layouts]
        leaves = [(leaf, 0) for leaf in graph.leaves.values()]
        passes = [gradients_at(graph, over_all_scores(graph, w), at + leaves) for w in weights]
        verifying = verifying_weights(n, precision, scores.dtype, scores.device)
        expected = gradients_at(graph, over_all_scores(graph, verifying), at)
    several = [list(found) for found in zip(*passes)]
    layouts = list(frontier.layouts.values())
    assert all(isinstance(layout, Blocks) for layout in layouts)
    apart: Any = list(zip(layouts, several[: len(at)]))
    verified: Any = [(layout, found[0], e) for (layout, found), e in zip(apart, expected)]
    summed: Any = several[len(at) :]
    return Probed(precision, weights, frontier, apart, summed, verifying, verified)


def _deviation(probes: list[Tensor], weights: list[Tensor], dim: int, owner_l: Tensor) -> float:
    """The largest |probe − ones · factor|, of the largest element that the owner has there."""
    ones, *others = (_lines(probe, dim) for probe in probes)
    largest_l = ones.abs().amax(1)
    own_n = torch.zeros(len(weights[0])).double().index_reduce_(0, owner_l, largest_l, "amax")
    own_l = own_n[owner_l].clamp_min(1e-300)
    worst = 0.0
    for w, probe in zip(weights[1:], others):
        factor_l = w.double()[owner_l]
        off_l = (probe - ones * factor_l[:, None]).abs().amax(1)
        worst = max(worst, float((off_l / (own_l * factor_l)).max()))
    return worst


def _lines(probe: Tensor, dim: int) -> Tensor:
    return probe.double().movedim(dim, 0).reshape(probe.shape[dim], -1)


def _owner(layout: Blocks) -> Tensor:
    index = torch.arange(layout.outer * layout.samples * layout.inner)
    return index // layout.inner % layout.samples


def _wrong(probed: Probed) -> Iterator[tuple[str, float]]:
    """What layouts that are wrong deviate by."""
    for layout, probes in probed.apart:
        owner, n = _owner(layout), layout.samples
        swapped = owner.clone()
        swapped[owner == 0], swapped[owner == 1] = 1, 0
        yield "swapped samples", _deviation(probes, probed.weights, layout.dim, swapped)
        yield "a neighbour's rows", _deviation(probes, probed.weights, layout.dim, owner.roll(1))
        for inner in (1, layout.outer * layout.inner):
            other = Blocks(layout.dim, layout.outer * layout.inner // inner, n, inner)
            if other != layout:
                yield (
                    "rows in another order",
                    _deviation(probes, probed.weights, layout.dim, _owner(other)),
                )
    for probes in probed.summed:
        for dim in range(probes[0].ndim):
            lines = [_lines(probe, dim) for probe in probes]
            own = lines[0].abs().amax(1).clamp_min(1e-300)
            # for every line the owner under whom a sum over samples deviates least
            off = torch.stack(
                [
                    torch.stack(
                        [(p - lines[0] * f).abs().amax(1) / (own * f) for p, f in zip(lines[1:], w)]
                    ).amax(0)
                    for w in zip(*(w.double() for w in probed.weights[1:]))
                ]
            )
            yield "a sum over samples", float(off.amin(0).max())


def _shares(layout: Blocks, gradient: Tensor) -> Tensor:
    split = layout.split(gradient.double())
    return split.abs().sum([d for d in range(split.ndim) if d != layout.dim + 1])


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", SETTINGS)
def test_margins(name: str, n: int) -> None:
    setting = SETTINGS[name]
    probed = _probed(setting, n)
    precision, dtype = probed.precision, probed.precision.dtype
    assert dtype == (setting.autocast or setting.dtype)
    allowed = precision.layout
    noise = max(
        _deviation(probes, probed.weights, layout.dim, _owner(layout))
        for layout, probes in probed.apart
    )
    wrong: dict[str, float] = {}
    for kind, deviation in _wrong(probed):
        wrong[kind] = min(deviation, wrong.get(kind, deviation))
    print(f"\n{name}, n = {n}: noise {noise:.1e}, allowed {allowed:.0e}, ", wrong)
    assert noise * BELOW[dtype] <= allowed
    assert min(wrong.values()) >= ABOVE[dtype] * allowed
    for layout, probes in probed.apart:
        assert find_layouts(probes, probed.weights, precision) == [layout]
    for probes in probed.summed:
        assert not find_layouts(probes, probed.weights, precision)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", SETTINGS)
def test_margins_of_verifying(name: str, n: int) -> None:
    """The one more pass over a batch: each sample's share must grow by its own weight."""
    probed = _probed(SETTINGS[name], n)
    precision, dtype = probed.precision, probed.precision.dtype
    weights = probed.verifying.double()
    swapped = weights.clone()
    other = next(k for k in range(1, n) if weights[k] != weights[0])
    swapped[[0, other]] = weights[[other, 0]]
    noise, wrong = 0.0, float("inf")
    for layout, ones, grown in probed.verified:
        share, found = _shares(layout, ones), _shares(layout, grown)
        noise = max(noise, float(((found / weights - share).abs() / share).max()))
        wrong = min(wrong, float(((found / swapped - share).abs() / share).max()))
    print(f"\n{name}, n = {n}: noise {noise:.1e}, allowed {precision.share:.0e}, wrong {wrong:.1e}")
    assert noise * BELOW[dtype] <= precision.share
    assert wrong >= ABOVE[dtype] * precision.share
