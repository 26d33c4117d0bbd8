"""What an accelerator would do, many samples at a time: its arithmetic, on the CPU."""

from __future__ import annotations

import pytest
import torch

from retain.per_sample import devices

from .zoo import REGISTRY, Specimen, Watched

LITTLE, SOME, PLENTY = 1, 3000, 1 << 22
WITH_MATRICES = ("convolutional", "vision", "wide", "attention", "recurrent", "reparametrised")
CHOSEN = [
    pytest.param(s, id=f"{s.family}-{s.name}")
    for s in REGISTRY.values()
    if s.family in WITH_MATRICES and not s.slow
]


@pytest.fixture(params=[LITTLE, SOME, PLENTY])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Samples go together, as many as make so many numbers."""
    held: int = request.param
    monkeypatch.setattr(devices, "at_once", lambda device: held)
    return held


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("specimen", CHOSEN)
def test_sums_are_exact(specimen: Specimen, power: int, together: int) -> None:
    watched = Watched(specimen, torch.float64, power)
    assert not watched.complaint(specimen.batch(dtype=torch.float64))


def test_cpu_takes_one_sample_at_a_time() -> None:
    assert devices.at_once(torch.device("cpu")) is None


def test_what_does_not_say_how_much_is_free() -> None:
    assert devices.at_once(torch.device("mps")) == devices.OTHERWISE


@pytest.mark.parametrize(
    ("free", "held"), [(0, devices.LEAST), (1 << 40, devices.MOST), (1 << 30, 1 << 25)]
)
def test_part_of_the_free_memory(monkeypatch: pytest.MonkeyPatch, free: int, held: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    assert devices.at_once(torch.device("cuda")) == held
