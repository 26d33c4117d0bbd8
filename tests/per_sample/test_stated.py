"""The summary says in what precision Ω was computed: what the operations really ran in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import retain
from retain.per_sample import stated

from .card import GpuLike, tf32_allowed


def _images() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return model, torch.randn(5, 3, 6, 6)


def _vectors() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 6)


def _said(made: tuple[nn.Module, Tensor], within: Any = None) -> tuple[str, ...]:
    model, x = made
    memory = retain.MAS(model)
    with within or nullcontext():
        memory.observe([x, x], progress=False)
    summary = str(memory.observed.summary())
    for precision in memory.observed.precisions:
        assert f"computed in {precision}" in summary
    return memory.observed.precisions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_of_the_weights(dtype: torch.dtype) -> None:
    model, x = _vectors()
    assert _said((model.to(dtype), x.to(dtype))) == (str(dtype).removeprefix("torch."),)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("made", [_vectors, _images])
def test_autocast_around(made: Any, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    assert _said(made(), torch.autocast("cpu", dtype)) == (f"{name} autocast",)


class Within(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = self.layers(x).float()
        return out


def test_autocast_within_the_model() -> None:
    model, x = _vectors()
    assert _said((Within(model), x)) == ("bfloat16 autocast",)


@pytest.mark.parametrize(
    ("made", "tf32", "said"),
    [
        (_images, True, "float32 (TF32 convolutions)"),
        (_images, False, "float32"),
        (_vectors, True, "float32"),
    ],
)
def test_under_the_arithmetic_of_a_card(made: Any, tf32: bool, said: str) -> None:
    """Allowed is not yet done: it is measured what a product makes of its operands."""
    given = made()
    with tf32_allowed(tf32):
        assert _said(given, GpuLike(tf32=True)) == (said,)
        assert _said(given) == ("float32",)  # on a CPU nothing rounds


@pytest.fixture
def _matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_matmul_precision")
@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_what_this_machine_makes_of_products(allowed: str) -> None:
    """A CPU may round where it is allowed to, or not: the statement is what it does."""
    torch.set_float32_matmul_precision(allowed)
    left = torch.full((64, 64), 1 + 2.0**-12)
    rounds = bool(((left @ torch.eye(64)) == 1).all())
    (said,) = _said(_vectors())
    assert said.endswith("products)") == rounds
    assert torch.get_float32_matmul_precision() == allowed


def test_every_kind_of_rounding_is_told_apart() -> None:
    def tf32(operand: Tensor) -> Tensor:
        return (operand * 2**10).round() / 2**10

    for product, name in [
        (lambda x: x, ""),
        (tf32, "TF32"),
        (lambda x: x.bfloat16().float(), "bfloat16"),
    ]:
        assert stated._rounding(product, torch.device("cpu")) == name


def test_several_are_all_told_and_kept(tmp_path: Path) -> None:
    model, x = _vectors()
    memory = retain.MAS(model).observe([x], progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        memory.observe([x], progress=False)
    both = ("float32", "bfloat16 autocast")
    assert memory.observed.precisions == both
    memory.observed.save(tmp_path / "omega.safetensors")
    assert retain.Importance.load(tmp_path / "omega.safetensors").precisions == both
    memory.save(tmp_path / "half-way.safetensors")
    assert retain.load(tmp_path / "half-way.safetensors", model).observed.precisions == both
    memory.consolidate().observe([x], progress=False).consolidate()
    assert memory.importance.precisions == both
    memory.save(tmp_path / "memory.safetensors")
    assert retain.load(tmp_path / "memory.safetensors", model).importance.precisions == both


def test_pooled_and_added() -> None:
    one = retain.Importance({"w": torch.ones(2)}, 3, precisions=["float32"])
    other = retain.Importance({"w": torch.ones(2)}, 3, precisions=["float64", "float32"])
    assert (one + other).precisions == ("float32", "float64")
    assert retain.Importance.pool([other, one]).precisions == ("float64", "float32")
    assert one.to("cpu").precisions == ("float32",)
    assert "computed in" not in str(retain.Importance({"w": torch.ones(2)}, 3).summary())


class Chosen(nn.Module):
    """A branch that only some batches take."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.one(x) if x[0, 0] > 0 else self.other(x)
        return out


def test_the_route_of_a_parameter_outlives_a_batch_without_it() -> None:
    memory = retain.MAS(Chosen())
    x = torch.randn(5, 6)
    x[:, 0] = x[:, 0].abs()
    memory.observe([x, -x, x], progress=False)
    assert not {"unused", "no gradient"} & set(memory.observed.routes.values())
    assert all(omega.any() for omega in memory.observed.values())
