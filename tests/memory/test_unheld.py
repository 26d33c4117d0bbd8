"""Weights that nothing would hold are named."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import retain
from retain.memory import unheld


class Branch(nn.Module):
    """A residual branch that starts at zero, and a layer that is never used."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.idle = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(2, 2)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x):
        return x + self.outer(torch.tanh(self.inner(x)))


def test_what_is_followed_by_zeros_is_named_once():
    memory = retain.MAS(Branch())
    with pytest.warns(UserWarning, match=r"of inner\.weight, inner\.bias is 0.*nothing will hold"):
        memory.observe(torch.randn(5, 3), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.observe(torch.randn(5, 3), progress=False)


class Keeping(nn.Module):
    """In evaluation it keeps what it made of its parameter, until it is trained."""

    def __init__(self):
        super().__init__()
        self.bias, self.layer, self.kept = nn.Parameter(torch.ones(3)), nn.Linear(3, 3), {}

    def train(self, mode=True):
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return self.layer(x) + self.bias.exp()
        self.kept.setdefault("bias", self.bias.exp())
        return self.layer(x) + self.kept["bias"]


def test_what_a_module_keeps_of_an_earlier_call_is_named():
    model = nn.Sequential(nn.Linear(3, 3), Keeping()).eval()
    with torch.no_grad():
        model(torch.randn(2, 3))
    memory = retain.MAS(model)
    with pytest.warns(UserWarning, match=r"of 1\.bias is 0.*\(1\.kept\).*model\.train\(\)"):
        memory.observe(torch.randn(5, 3), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.observe(torch.randn(5, 3), progress=False)
        model.train()
        trained = retain.MAS(model).observe(torch.randn(5, 3), progress=False)
    assert trained.observed["1.bias"].all()


def test_nothing_is_said_of_a_trained_model():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retain.MAS(nn.Linear(3, 2)).observe(torch.randn(5, 3), progress=False).consolidate()


def test_what_was_found_to_grow_is_not_looked_at_again(monkeypatch):
    """Sums only grow; those of another memory, or of a new round, are looked at anew."""
    model, looked, is_zero = nn.Linear(3, 2), [], unheld._is_zero
    monkeypatch.setattr(unheld, "_is_zero", lambda total: looked.append(total) or is_zero(total))
    memory = retain.MAS(model)
    for _ in range(3):
        memory.observe(torch.randn(5, 3), progress=False)
    assert len(looked) == 2
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    memory.consolidate()
    with pytest.warns(UserWarning, match="weight, bias is 0"):
        memory.observe(torch.randn(5, 3), progress=False)
