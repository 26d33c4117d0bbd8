"""What an accelerator would do, many samples at a time: its arithmetic, on the CPU."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from retain.per_sample import PerSample, carried, devices, products, sums_by_loop
from retain.per_sample.dear import Dearness
from retain.per_sample.quickest import MORE, TIMED, quickest
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor

from .zoo import REGISTRY, Specimen, Watched

LITTLE, SOME, PLENTY = 1, 3000, 1 << 22
WITH_MATRICES = ("convolutional", "vision", "wide", "attention", "recurrent", "reparametrised")
CHOSEN = [
    pytest.param(s, held, power, id=f"{s.family}-{s.name}-{held}-{power}")
    for s in REGISTRY.values()
    for held, power in ((LITTLE, 2), (SOME, 1), (PLENTY, 2))
    if not s.slow and (s.family in WITH_MATRICES if held != SOME else s.family != "huggingface")
]


@pytest.mark.parametrize(("specimen", "held", "power"), CHOSEN)
def test_sums_are_exact(
    specimen: Specimen, held: int, power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples go together, as many as make so many numbers."""
    monkeypatch.setattr(devices, "room", lambda device: held)
    watched = Watched(specimen, torch.float64, power)
    assert not watched.complaint(specimen.batch(dtype=torch.float64))


def test_cpu_takes_one_sample_at_a_time() -> None:
    assert devices.room(torch.device("cpu")) is None


def test_what_does_not_say_how_much_is_free() -> None:
    assert devices.room(torch.device("mps")) == devices.OTHERWISE


@pytest.mark.parametrize(
    ("free", "held"), [(0, devices.LEAST), (1 << 40, devices.MOST), (1 << 30, 1 << 25)]
)
def test_part_of_the_free_memory(monkeypatch: pytest.MonkeyPatch, free: int, held: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert devices.room(torch.device("cuda")) == held


def test_memory_that_pytorch_holds_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 28, 1 << 40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 28)
    assert devices.room(torch.device("cuda")) == (1 << 30) // devices.SHARE // 4


def test_a_device_is_asked_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(device: torch.device) -> int:
        asked.append(device)
        return len(asked)

    monkeypatch.setattr(devices, "_roomy", answer)
    one, other = torch.device("cuda", 0), torch.device("cuda", 1)
    for _ in range(2):
        with devices.one_look():
            before = len(asked)
            assert [devices.room(d) for d in (one, one, other)] == [
                before + 1,
                before + 1,
                before + 2,
            ]
    assert len(asked) == 4


def test_the_quickest_way_is_measured_once() -> None:
    ran = {"slow": 0, "quick": 0, "broken": 0}

    def way(name: str, seconds: float) -> None:
        ran[name] += 1
        time.sleep(seconds)
        if name == "broken":
            raise torch.OutOfMemoryError("out of memory")

    ways = {
        name: partial(way, name, s) for name, s in [("broken", 0), ("slow", 0.02), ("quick", 0)]
    }
    of = object()
    assert quickest(of, ways, torch.device("cpu")) == "quick"
    once = dict(ran)
    assert (once["slow"], once["broken"]) == (1 + TIMED, 1)
    assert TIMED < once["quick"] <= MORE, "what is short is tried more often"
    assert [quickest(of, ways, torch.device("cpu")) for _ in range(3)] == ["quick"] * 3
    assert ran == once


def test_a_way_that_there_is_not_is_never_chosen() -> None:
    """A few samples go together where a whole batch does not fit, or the other way round."""
    of, here = ("a test", object()), torch.device("cpu")
    slow, quick = lambda: time.sleep(0.02), lambda: None
    assert quickest(of, {"slow": slow, "quick": quick}, here) == "quick"
    assert quickest(of, {"slow": slow, "middling": lambda: time.sleep(0.001)}, here) == "middling"


@pytest.fixture
def _whatever_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With next to no memory, single samples are quicker than many at a time; not here."""
    monkeypatch.setattr(Dearness, "look", lambda *_: None)


class Scaled(nn.Module):
    """Weights that are made of parameters element by element, the same for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.masked, self.signed, self.logarithm, self.tied, self.normed = (
            nn.Parameter(torch.randn(5, 5)) for _ in range(5)
        )
        self.register_buffer("mask", (torch.rand(5, 5) < 0.6).float())

    def forward(self, x: Tensor) -> Tensor:
        for weight in (
            self.masked * self.mask,
            -0.3 * self.signed.T,
            F.softplus(self.logarithm).view(5, 5).exp(),
            self.tied * self.mask + self.tied.T,  # every element twice
            self.normed / self.normed.norm(dim=1, keepdim=True),
        ):
            x = torch.tanh(F.linear(x, weight))
        return x


@pytest.mark.usefixtures("_whatever_it_costs")
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("held", [None, 1, 60, PLENTY])
def test_scaled_weights_are_pulled_back_once(
    held: int | None, power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "room", lambda device: held)
    monkeypatch.setattr(carried, "HELD", 1)
    monkeypatch.setattr(carried, "BLOCK", 1)
    model, x = Scaled().double(), torch.randn(7, 3, 5).double()
    parameters = dict(model.named_parameters())
    engine = PerSample(model, parameters, SquaredNorm(), power=power)
    sums = engine(Batch.of(x))
    truth = sums_by_loop(
        model, Batch.of(x), parameters, SquaredNorm(), power=power, output=first_tensor
    )
    for name, expected in truth.items():
        torch.testing.assert_close(sums[name], expected)
    assert [name for name, route in engine.routes.items() if "pulled back" in route] == ["normed"]


@pytest.mark.usefixtures("_whatever_it_costs")
def test_what_is_pulled_back_takes_no_more_operations_for_more_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "room", lambda device: PLENTY)
    model = Scaled()
    counts = []
    for n in (4, 40):
        engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())
        batch = Batch.of(torch.randn(n, 3, 5))
        engine(batch)
        with Counting() as counting:
            engine(batch)
        counts.append(counting.count)
    assert counts[0] == counts[1]


class Tied(nn.Module):
    """A table of tokens that is the head as well, looked up twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 6, padding_idx=3)
        self.inner = nn.Linear(6, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.inner(self.table(tokens))) + self.table(tokens.flip(1))
        return F.linear(x, self.table.weight)


@pytest.mark.usefixtures("_whatever_it_costs")
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("held", [None, 1, 70, 700, PLENTY])
def test_tied_weights_need_no_table_for_every_sample(
    held: int | None, power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "room", lambda device: held)
    monkeypatch.setattr(products, "BLOCK", 70)
    model, tokens = Tied().double(), torch.randint(9, (7, 5))
    parameters = dict(model.named_parameters())
    engine = PerSample(model, parameters, SquaredNorm(), power=power)
    sums = engine(Batch.of(tokens))
    truth = sums_by_loop(
        model, Batch.of(tokens), parameters, SquaredNorm(), power=power, output=first_tensor
    )
    for name, expected in truth.items():
        torch.testing.assert_close(sums[name], expected)
    assert engine.routes["table.weight"] == "embedding+linear"


class Counting(TorchDispatchMode):
    """How many operations ran."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
