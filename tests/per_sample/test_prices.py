"""What is said to be slow is slow when it is warm, too."""

from __future__ import annotations

import cProfile
import pstats
import time
import warnings

import pytest
import torch
from torch import Tensor, nn

import retain
from retain.borrowed import borrowed
from retain.per_sample import PerSample, carried
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch


class Normed(nn.Module):
    """A weight that is pulled back sample by sample, and a first pass that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(30, 200))
        self.wide = nn.Linear(200, 3000)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.wide(x)) @ self.wide.weight
        return x @ (self.weight / self.weight.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("cold", [True, False])
def test_a_first_pass_is_no_measure(cold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what takes long again is warned of."""
    monkeypatch.setattr(carried, "HELD", 1)
    monkeypatch.setattr(carried, "BLOCK", 1)
    model, ran = Normed(), PerSample._run
    engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())
    calls = []

    def running(self, *args, **more) -> None:
        ran(self, *args, **more)
        calls.append(time.perf_counter())
        self._seconds = 1.0 if not cold or len(calls) == 1 else 1e-9

    monkeypatch.setattr(PerSample, "_run", running)
    with warnings.catch_warnings(record=True) as told, borrowed(model):
        warnings.simplefilter("always")
        sums = engine(Batch.of(torch.randn(8, 200)))
    assert len(calls) == 2
    assert all(total.isfinite().all() and total.any() for total in sums.values())
    assert bool(told) is not cold or "loop" in engine.routes.values()


def test_the_work_around_a_batch_is_bounded() -> None:
    """What a small network pays for: calls of Python functions, which no other process slows."""
    layers = (nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    memory, x = retain.MAS(nn.Sequential(*layers).eval()), torch.rand(16, 4)
    for _ in range(2):
        memory.observe(x, progress=False)
    profile, times = cProfile.Profile(), 5
    profile.enable()
    for _ in range(times):
        memory.observe(x, progress=False)
    profile.disable()
    assert pstats.Stats(profile).total_calls < 3700 * times  # type: ignore[attr-defined]
