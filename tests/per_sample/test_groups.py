"""Which parameters belong together is found by one look at each use, however many there are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retain.borrowed import borrowed
from retain.per_sample import PerSample, groups
from retain.per_sample.graph import Graph
from retain.per_sample.scores import SquaredNorm
from retain.per_sample.uses import ParameterUse
from retain.samples.batches import Batch


@pytest.mark.parametrize("layers", [2, 12])
def test_each_use_is_looked_at_once(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plainly = groups.below_of
    asked: list[ParameterUse] = []

    def noted(graph: Graph, use: ParameterUse) -> int:
        asked.append(use)
        return plainly(graph, use)

    monkeypatch.setattr(groups, "below_of", noted)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(layers)))
    engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())
    with borrowed(model):
        engine(Batch.of(torch.randn(5, 4)))
    assert len(asked) == 2 * layers
