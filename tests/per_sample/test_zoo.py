"""Every model of the zoo: the engine is as exact as one sample at a time."""

from __future__ import annotations

import pytest
import torch

from .zoo import REGISTRY, Specimen, Watched

ALL = [
    pytest.param(s, id=f"{s.family}-{s.name}", marks=[pytest.mark.slow] if s.slow else [])
    for s in REGISTRY.values()
]
DEAD = 1e-9  # of the largest mean importance in the model; rounding leaves about 1e-16


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("specimen", ALL)
def test_sums_are_exact(specimen: Specimen, dtype: torch.dtype, power: int) -> None:
    watched = Watched(specimen, dtype, power)
    assert not watched.complaint(specimen.batch(dtype=dtype))
    assert set(watched.per_sample.routes) == set(watched.parameters)


@pytest.mark.parametrize("specimen", ALL)
def test_specimen_is_worth_keeping(specimen: Specimen) -> None:
    """Every parameter has a gradient, unless it is known to have none, and the usual mistake shows.

    The usual mistake is |Σ g| in place of Σ |g|.
    """
    watched = Watched(specimen)
    batch = specimen.batch(max(12, specimen.samples))
    truth, mistake = watched.truth(batch), watched.power_of_the_sum(batch)
    largest = max(float(t.mean()) for t in truth.values())
    shown = []
    for name, t in truth.items():
        share = float(t.mean()) / largest
        if specimen.is_unused(name):
            assert not t.any(), f"{name} is used"
        elif specimen.is_vanishing(name):
            assert share < DEAD, f"{name} does not vanish"
        else:
            assert share > DEAD, f"{name} is dead: {share:.1e} of the largest"
            shown.append(float((mistake[name] - t).norm() / t.norm()) > 1e-2)
    assert sum(shown) > len(shown) / 2
