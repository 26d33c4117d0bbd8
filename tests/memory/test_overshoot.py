"""A penalty that SGD cannot follow in the gradient form is told before its steps, and no other."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import retain

RATE = 0.1


def trained(times: float, *, form: str = "gradient", made=torch.optim.SGD, **settings):
    """How far the weights end from θ*, and what is said, at `times` the strength of the edge."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False)
    memory = retain.MAS(model).observe(torch.randn(16, 4), progress=False).consolidate()
    momentum = settings.get("momentum", 0)
    edge = 2 * (1 + momentum) / ((1 + 2 * momentum) if settings.get("nesterov") else 1) / RATE
    memory.strength = times * edge / (2 * float(memory.importance["weight"].max()))
    optimizer = made(model.parameters(), lr=RATE, **settings)
    memory.attach(optimizer, form=form)
    with torch.no_grad():
        model.weight.add_(1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(300):
            optimizer.zero_grad()
            model(torch.zeros(1, 4)).sum().backward()
            optimizer.step()
    off = float((model.weight.detach() - memory.anchor["weight"]).abs().max())
    return off, [str(w.message) for w in caught if "overshoots" in str(w.message)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    ids=["plain", "momentum", "nesterov"],
)
def test_the_edge_is_where_weights_are_thrown_away(settings):
    off, said = trained(0.9, **settings)
    assert off < 1e-3
    assert not said
    off, said = trained(1.1, **settings)
    assert not off < 1e3
    assert len(said) == 1
    assert "'weight'" in said[0]
    assert "1.1 times" in said[0]
    assert 'form="proximal"' in said[0]


def test_forms_and_optimizers_that_are_stable_are_silent():
    for form in ("proximal", "adaptive"):
        off, said = trained(100, form=form)
        assert off < 1e-3
        assert not said
    assert not trained(100, made=torch.optim.Adam)[1]


def test_a_learning_rate_that_grows_is_looked_at_again():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    memory = retain.MAS(model, strength=5.0).observe(torch.randn(16, 4), progress=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    memory.consolidate().attach(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.zeros(1, 4)).sum().backward()
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e3
    with pytest.warns(UserWarning, match="overshoots"):
        optimizer.step()
