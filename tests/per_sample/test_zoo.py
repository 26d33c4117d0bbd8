"""Every model of the zoo: the engine is as exact as one sample at a time."""

from __future__ import annotations

import pytest
import torch

from .zoo import REGISTRY, Specimen, Watched

ALL = [
    pytest.param(s, id=f"{s.family}-{s.name}", marks=[pytest.mark.slow] if s.slow else [])
    for s in REGISTRY.values()
]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("specimen", ALL)
def test_sums_are_exact(specimen: Specimen, dtype: torch.dtype, power: int) -> None:
    watched = Watched(specimen, dtype, power)
    assert not watched.complaint(specimen.batch(dtype=dtype))
    assert set(watched.per_sample.routes) == set(watched.parameters)


@pytest.mark.parametrize("specimen", ALL)
def test_specimen_is_alive(specimen: Specimen) -> None:
    """A dead gradient tests nothing: every parameter has some, unless it is known to have none."""
    truth = Watched(specimen).truth(specimen.batch())
    largest = max(float(t.mean()) for t in truth.values())
    for name, t in truth.items():
        if specimen.is_unused(name):
            assert not t.any(), f"{name} is used"
        elif specimen.is_vanishing(name):
            assert float(t.mean()) < 1e-6 * largest, f"{name} does not vanish"
        else:
            assert float(t.mean()) > 1e-6 * largest, f"{name} is dead: {float(t.mean()):.1e}"


@pytest.mark.parametrize("specimen", ALL)
def test_specimen_tells_the_sum_of_powers_from_the_power_of_the_sum(specimen: Specimen) -> None:
    """|Σ g| in place of Σ |g| is the mistake to catch: most parameters must show it."""
    watched = Watched(specimen)
    batch = specimen.batch(max(12, specimen.samples))
    truth, mistake = watched.truth(batch), watched.power_of_the_sum(batch)
    seen = [
        float((mistake[name] - t).norm() / t.norm()) > 1e-2 for name, t in truth.items() if t.any()
    ]
    assert sum(seen) > len(seen) / 2
