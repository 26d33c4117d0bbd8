"""Optimizers that step past a memory: when a word is said, and when not yet."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import retain


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def memory(model):
    return retain.MAS(model).observe(torch.randn(16, 4), progress=False).consolidate()


def said(act):
    """What is warned of meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(one.message) for one in caught]


def step(model, optimizer, memory=None):
    optimizer.zero_grad()
    loss = model(torch.ones(2, 4)).sum()
    (loss if memory is None else loss + memory.penalty()).backward()
    optimizer.step()


def test_a_penalty_in_the_loss_of_another_model_is_told_of_at_its_second_step(model, memory):
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    assert said(lambda: step(other, optimizer, memory)) == []
    (words,) = said(lambda: step(other, optimizer, memory))
    assert "penalty() is in the gradient, but this SGD steps none of the parameters" in words


def test_an_optimizer_that_is_not_attached_beside_one_that_is(model, memory):
    memory.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    second = torch.optim.SGD(model.parameters(), lr=0.1)
    (words,) = said(lambda: step(model, second))
    assert "nothing protects them: it is not attached" in words


def test_an_attached_optimizer_whose_parameters_were_replaced(model, memory):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer)
    for layer in (model[0], model[2]):
        layer.weight, layer.bias = (nn.Parameter(p.detach() + 1) for p in layer.parameters())
    words = said(lambda: step(model, optimizer))
    assert any("no longer holds any of the parameters" in one for one in words)


def test_a_parameter_of_the_model_itself_that_was_replaced_is_named():
    model = nn.Linear(4, 3)
    memory = retain.MAS(model).observe(torch.randn(16, 4), progress=False).consolidate()
    model.weight = nn.Parameter(model.weight.detach() + 100)
    words = said(memory.penalty)
    assert any("weight" in one and "replaced" in one for one in words)
