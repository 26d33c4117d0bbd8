"""Models that write to what they are given: Ω is right, and the user's data stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import retain

from .tiny import assert_same, omega, one_by_one

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Normalises(nn.Module):
    """In place, as code that was written for inference may do."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x, labels=None):
        return self.layers(x.sub_(0.5).mul_(3))


class TakesOut(nn.Module):
    """Removes what it has used from a mapping inside of what it is given."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, features):
        return self.layers(features["of"].pop("x") + features["of"].pop("y"))


def ready(kind):
    torch.manual_seed(1)
    return kind().double()


@pytest.mark.parametrize("batch", [lambda x: x, lambda x: (x, X[:, 0]), lambda x: {"x": x}])
@pytest.mark.parametrize("samples", [1, 3, 6])
def test_in_place(batch, samples):
    model, x = ready(Normalises), X.clone()
    truth = one_by_one(model, list(X), lambda row: model(row[None].clone()))
    assert_same(omega(model, [batch(part) for part in x.split(samples)]), truth)
    assert torch.equal(x, X)


def test_parts_that_are_gone_after_a_call():
    model = ready(TakesOut)
    given = {"features": {"of": {"x": X.clone(), "y": X.clone()}}}
    truth = one_by_one(model, list(X), lambda row: model({"of": {"x": row[None], "y": row[None]}}))
    assert_same(omega(model, [given]), truth)
    assert set(given["features"]["of"]) == {"x", "y"}


def test_the_local_rule():
    model, x = ready(Normalises), X.clone()
    found = omega(model, [x], kind=retain.LocalMAS)
    again = omega(model, list(x.split(1)), kind=retain.LocalMAS)
    assert torch.equal(x, X)
    assert_same(found, again)
