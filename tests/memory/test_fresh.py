"""Which layers look as their initialisation left them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retain.memory.fresh import fresh_layers

INPUTS, OUTPUTS = 16, 32


def network(bias):
    """A layer that may be fresh, with this in its bias, and one that was surely trained."""
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.Linear(OUTPUTS, INPUTS))
    generator = torch.Generator().manual_seed(0)
    bound = INPUTS**-0.5
    weight = bound * (2 * torch.rand(OUTPUTS, INPUTS, generator=generator) - 1)
    model[0].weight = nn.Parameter(weight)
    model[0].bias = nn.Parameter(torch.full((OUTPUTS,), bias * bound))
    model[1].weight = nn.Parameter(torch.randn(INPUTS, OUTPUTS, generator=generator))
    return model


@pytest.mark.parametrize(("bias", "fresh"), [(0.5, ["0"]), (1.0, ["0"]), (-1.2, []), (30.0, [])])
def test_a_bias_beyond_the_bound_of_initialisers_was_trained(bias, fresh):
    assert fresh_layers(network(bias), ["0.weight", "1.weight"]) == fresh


def test_weights_that_were_written_to_were_trained():
    model = network(0.5)
    with torch.no_grad():
        for _ in range(5):
            model[0].weight.mul_(1)
    assert fresh_layers(model, ["0.weight", "1.weight"]) == []
