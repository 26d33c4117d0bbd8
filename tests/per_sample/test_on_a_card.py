"""A card's arithmetic: every model takes the routes, and the work, that it takes on a CPU."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from retain.borrowed import borrowed
from retain.per_sample import PerSample, devices
from retain.per_sample.dear import Dearness
from retain.per_sample.precision import Precision
from retain.per_sample.scores import SquaredNorm
from retain.per_sample.ties import disagreeing
from retain.samples.batches import Batch

from .card import GpuLike, tf32_allowed
from .zoo import REGISTRY, Specimen, Watched, relative_errors

# What people train, made narrow. Their names are those of the zoo.
KNOWN = [
    "alexnet_narrow", "resnet_basic_blocks", "resnext_bottlenecks", "mobilenet_v2_small",
    "efficientnet_small", "convnext_small", "regnet_small", "vit_by_multihead_attention",
    "timm_vit_with_layer_scale", "vit_of_transformers", "gpt2", "albert_of_one_shared_layer",
    "deberta_v2_with_relative_positions", "lstm", "lstm_bidirectional_two_layers",
    "conv1d_with_group_norm",
]  # fmt: skip
LARGE = ["alexnet", "resnet18", "efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_16"]
PLENTY = 1 << 24  # numbers that a card holds at once
# ‖difference‖ ≤ of ‖Σ|g|‖. TF32 keeps 10 bits of what convolutions multiply: 1e-3 of each product.
NEAR = {False: 1e-3, True: 2e-2}
TF32 = pytest.mark.parametrize("tf32", [False, True], ids=["float32", "tf32"])
WORK = 1.5  # of the operations that a plain backward pass takes


class Work(TorchDispatchMode):
    """Counts products and convolutions; the backward of a convolution as all it is asked for."""

    PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_"})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in self.PRODUCTS
        if name == "convolution_backward":
            self.count += sum(args[-1][:2])
        elif name == "convolution":
            self.count += 1
        return func(*args, **(kwargs or {}))


def _large(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _whatever_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What that takes on an emulated card is no measure; timed again, it has other noise."""
    monkeypatch.setattr(Dearness, "look", lambda *_: None)


@TF32
@pytest.mark.parametrize("name", [*KNOWN, *map(_large, LARGE)])
def test_known_models(name: str, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No parameter is looped over or masked, nothing is warned of, and little more is computed."""
    monkeypatch.setattr(devices, "room", lambda device: PLENTY)
    watched = Watched(REGISTRY[name], torch.float32)
    one, other = (watched.specimen.batch(6, torch.float32, seed) for seed in (1, 2))
    with GpuLike(tf32=tf32) as card, tf32_allowed(tf32), warnings.catch_warnings():
        warnings.simplefilter("error")
        watched.engine(one)
        with borrowed(watched.model), Work() as plain:
            watched.score(watched.output(other.call(watched.model)), None).sum().backward()
        watched.model.zero_grad(set_to_none=True)
        with Work() as work:
            watched.engine(other)
        errors = _errors(watched, other, card)
    routes = watched.per_sample.routes
    assert not [n for n, way in routes.items() if {"loop", "masked", "unused"} & {*_ways(way)}]
    assert work.count <= WORK * plain.count
    assert not {n: e for n, e in errors.items() if not e <= NEAR[tf32]}


def _errors(watched: Watched, batch: Batch, card: GpuLike) -> dict[str, float]:
    """From each sample's own gradient in a graph whose forward had the same noise.

    With other noise, inputs of ReLU that are zero but for noise would have other signs.
    """
    card.chance.manual_seed(1)
    sums = watched.engine(batch)
    card.chance.manual_seed(1)
    batchwise = watched.specimen.name in BATCHWISE
    truth = watched.truth(batch) if batchwise else watched.truth_of_one_graph(batch)
    return relative_errors(sums, truth, watched.specimen)


def _ways(route: str) -> list[str]:
    return route.replace(", ", "+").split("+")


BATCHWISE = {"embedding_scaled_by_frequency"}  # whose backward looks at the whole batch
SAMPLE = [s for s in REGISTRY.values() if s.family in ("mlp", "norms", "rearranged", "recurrent")]
QUICK = {s.name for s in SAMPLE} | {*KNOWN}


@TF32
@pytest.mark.parametrize(
    "specimen",
    [
        pytest.param(s, id=s.name, marks=[] if s.name in QUICK else [pytest.mark.slow])
        for s in REGISTRY.values()
    ],
)
def test_zoo(specimen: Specimen, tf32: bool) -> None:
    """Batch after batch, of this size and that, against each sample through the same graph."""
    watched = Watched(specimen, torch.float32)
    with GpuLike(tf32=tf32) as card, tf32_allowed(tf32):
        watched.engine(specimen.batch(None, torch.float32))
        for n in (specimen.samples, specimen.samples + 2):
            errors = _errors(watched, specimen.batch(n, torch.float32, seed=n), card)
            assert not {name: e for name, e in errors.items() if not e <= NEAR[tf32]}


def test_rounding_of_which_a_network_makes_much_is_no_company() -> None:
    """Outputs alone and together differ by more than the check allows, with TF32; not without."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(12)]
    steep = [layer for each in layers for layer in (each, nn.Tanh())]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *steep, nn.Flatten(), nn.Linear(8 * 36, 3))
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(2.5)
    images = torch.randn(6, 3, 8, 8)
    engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())
    with GpuLike(tf32=True), tf32_allowed(True), borrowed(model):
        with torch.no_grad():
            alone, together = model(images[-1:]), model(images)[-1:]
        allowed = Precision(torch.float32).result
        assert float((alone - together).norm() / together.norm()) > allowed
        engine(Batch.of(images))
    assert "loop" not in engine.routes.values()


def test_a_tie_may_change_all_of_what_few_units_have() -> None:
    """Squeeze-and-excitation squeezes to a handful of units: one ReLU at zero is all of a bias."""
    precision, half = Precision(torch.float32), torch.full((400,), 0.5)
    few, none = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.0])
    many, flipped = torch.ones(400), torch.cat([half[:40], torch.ones(360)])
    found, truth = {"few": few, "many": flipped}, {"few": none, "many": many}
    assert not disagreeing(found, truth, precision, ties=True)
    assert disagreeing(found, truth, precision) == {"few", "many"}
    assert disagreeing({"many": half}, {"many": many}, precision, ties=True) == {"many"}
