"""Four threads observe at once, the same model or their own: as exact as one after another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import retain


class Mixed(nn.Module):
    """A recurrent layer, a checkpointed part, and dropout: what is run otherwise while borrowed."""

    def __init__(self):
        super().__init__()
        self.cell, self.drop = nn.LSTM(5, 6, batch_first=True), nn.Dropout()
        self.body, self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)

    def forward(self, x):
        states = checkpoint(self.body, self.cell(x)[0], use_reentrant=False)
        return self.head(self.drop(states[:, -1]))


@pytest.mark.parametrize("shared", [True, False])
def test_four_at_once(shared):
    models = [Mixed().double()] * 4 if shared else [Mixed().double() for _ in range(4)]
    data = torch.randn(4, 6, 4, 5, dtype=torch.float64)
    kinds = [retain.MAS, lambda model: retain.EWC(model, fisher="exact")] * 2

    def observed(index):
        memory = kinds[index](models[index])
        memory.observe([data[index]] * 3, progress=False)
        return dict(memory.observed)

    expected = [observed(index) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(observed, range(4)))
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert sum(float(omega.sum()) for omega in one.values()) > 0
        for name, omega in one.items():
            torch.testing.assert_close(omega, other[name], rtol=1e-9, atol=1e-12)
    assert all(module.training for model in models for module in model.modules())
