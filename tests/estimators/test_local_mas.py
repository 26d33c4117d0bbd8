"""The local rule against its definition, and what it leaves alone."""

import copy
import threading
import warnings

import pytest
import torch
from torch import nn

from retain.batches import Batch
from retain.borrowed import borrowed
from retain.errors import InputError, ModelError, NonFiniteError
from retain.estimators.local_mas import LocalRule

from .local_cases import CASES, Case, Reshaped, Residual, Tokens, Twice, two_layers
from .local_truth import local_truth


def sums_of(model, inputs, *, batch_dim=0, rule=None):
    rule = rule or LocalRule(model, dict(model.named_parameters()))
    with borrowed(model):
        sums = rule(Batch.of(inputs, batch_dim=batch_dim))
    return {name: total.clone() for name, total in sums.items()}


def build(case: Case):
    return case.model().double().eval(), torch.randn(case.shape, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_is_exact(name):
    case = CASES[name]
    model, inputs = build(case)
    truth = local_truth(model, inputs, case.ends, batch_dim=case.batch_dim)
    sums = sums_of(model, inputs, batch_dim=case.batch_dim)
    assert sums.keys() == truth.keys()
    for key, total in sums.items():
        torch.testing.assert_close(total, truth[key], rtol=1e-9, atol=1e-12)


def test_hebb():
    """After ReLU, Ω is twice the mean co-activation of the two neurons."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(50, 6)
    hidden = model[:2](x).detach()
    above = model[2:4](hidden).detach()
    omega = sums_of(model, x)["2.weight"] / 50
    assert (omega > 0).any()
    for j in range(4):
        for i in range(5):
            expected = 2 * (above[:, j] * hidden[:, i]).mean()
            torch.testing.assert_close(omega[j, i], expected)
