"""Optimizers that step past a memory: when a word is said, and when not yet."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import retain
from retain.errors import ModelError


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


@pytest.mark.parametrize("through_data", [False, True])
def test_master_weights_of_which_the_model_holds_copies_are_no_other_model(
    model, memory, through_data
):
    """In half precision: the penalty is in the gradients that are handed to them."""
    masters = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1)

    def train():
        model.zero_grad()
        (model(torch.ones(2, 4)).sum() + memory.penalty()).backward()
        for master, p in zip(masters, model.parameters(), strict=True):
            master.grad = p.grad.clone()
        optimizer.step()
        with torch.no_grad():
            for master, p in zip(masters, model.parameters(), strict=True):
                (p.data if through_data else p).copy_(master)

    assert said(lambda: [train() for _ in range(4)]) == []


def test_a_penalty_in_a_compiled_loss_is_computed_beside_the_graph(model, memory):
    with torch.no_grad():
        model[0].weight += 0.5
    memory.penalty().backward()
    expected = model[0].weight.grad.clone()
    traced = []

    def look(graph, _inputs):
        traced.extend(str(node.stack_trace) for node in graph.graph.nodes)
        return graph.forward

    def loss(x):
        return model(x).sum() * 0 + memory.penalty()

    compiled = torch.compile(loss, backend=look)
    for _ in range(2):
        model.zero_grad()
        assert said(lambda: compiled(torch.ones(2, 4)).backward()) == []
        torch.testing.assert_close(model[0].weight.grad, expected)
    assert not any("retain" in trace and "protecting.py" in trace for trace in traced)


@pytest.mark.parametrize(
    ("put_on", "part"),
    [
        (nn.utils.parametrizations.weight_norm, "0.parametrizations.weight.original0"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "0.weight_orig"),
    ],
)
def test_a_weight_that_is_computed_from_others_now_is_told_as_that(model, memory, put_on, part):
    put_on(model[0])
    with pytest.raises(ModelError, match=rf"0\.weight .* computed from {part}"):
        memory.penalty()


def test_a_batch_norm_that_comes_later_is_told_of():
    """The one that was there is frozen, and the one in its place is not."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    memory = retain.MAS(model).observe(torch.randn(16, 4), progress=False).consolidate()
    retain.frozen_statistics(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with memory.attach(optimizer):
        assert not any("statistics" in words for words in said(lambda: step(model, optimizer)))
    model[1] = nn.BatchNorm1d(8).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def train():
        with memory.attach(optimizer):
            step(model, optimizer)

    assert any("running statistics of 1 follow" in words for words in said(train))
