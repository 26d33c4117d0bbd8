"""Distances from θ*, as they are read."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import retain
from retain.errors import ModelError
from retain.memory import movement as movement_module
from retain.memory.movement import TOGETHER, Distance, Movement, alike

from .test_no_waiting import Waits


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        (0.0, "0 (0 % of ‖θ*‖)"),
        (1e-6, "1e-06 (under 0.01 % of ‖θ*‖)"),
        (0.0055, "0.0055 (0.55 % of ‖θ*‖)"),
        (0.996, "0.996 (100 % of ‖θ*‖)"),
        (3.8, "3.8 (380 % of ‖θ*‖)"),
        (38.4, "38.4 (38 times ‖θ*‖)"),
        (70_000.0, "70,000 (70,000 times ‖θ*‖)"),
    ],
)
def test_distances_are_read_without_exponents(moved, said):
    assert str(Distance(moved, 1.0)) == f"‖θ − θ*‖ = {said}"


def test_from_an_anchor_of_zeros_there_is_no_share():
    assert str(Distance(2.0, 0.0)) == "‖θ − θ*‖ = 2"
    assert Distance(2.0, 0.0).share == ""


def test_a_write_behind_the_counters_is_seen_in_the_elements():
    p = nn.Parameter(torch.arange(6.0))
    movement = Movement()
    movement.start([p])
    assert movement.moved({"p": p}, closely=True) == []
    p.data[0] = 7
    assert movement.moved({"p": p}, closely=False) == []
    assert movement.moved({"p": p}, closely=True) == ["p"]
    movement.record([p])
    assert movement.moved({"p": p}, closely=True) == []


def test_a_write_that_puts_back_what_was_there_is_none():
    p = nn.Parameter(torch.arange(6.0))
    movement = Movement()
    movement.start([p])
    with torch.no_grad():
        p.add_(0)
    assert movement.moved({"p": p}, closely=False) == []
    with torch.no_grad():
        p.add_(1)
    assert movement.moved({"p": p}, closely=False) == ["p"]


def test_tensors_are_alike_by_their_elements_where_these_can_be_read():
    assert alike(torch.ones(3), torch.ones(3))
    assert not alike(torch.ones(3), torch.zeros(3))
    assert alike(torch.ones(3), torch.zeros(3, device="meta"))
    assert alike(torch.ones(0), torch.zeros(0))


def test_states_of_many_steps_are_known_again_and_nothing_waits_for_them():
    net = nn.Linear(5, 4)
    movement = Movement()
    movement.start(list(net.parameters()))
    states = []
    with Waits() as waits:
        for _ in range(2 * TOGETHER + 3):
            with torch.no_grad():
                net.weight.add_(torch.randn(4, 5))
            states.append(net.weight.detach().clone())
            movement.record(net.parameters())
    assert not waits.counts
    named = dict(net.named_parameters())
    for number in (0, TOGETHER - 1, TOGETHER, 2 * TOGETHER + 1):
        net.weight.data = states[number]
        assert movement.moved(named, closely=True) == []
    net.weight.data = states[0] + 1
    assert movement.moved(named, closely=True) == ["weight"]
    net.weight.data = states[0].flip(0)
    assert movement.moved(named, closely=True) == ["weight"]


def test_as_many_states_as_are_kept(monkeypatch):
    monkeypatch.setattr(movement_module, "PAST", 2 * TOGETHER)
    net = nn.Linear(5, 4)
    movement = Movement()
    movement.start(list(net.parameters()))
    first = net.weight.detach().clone()
    for _ in range(4 * TOGETHER):
        with torch.no_grad():
            net.weight.add_(torch.randn(4, 5))
        movement.record(net.parameters())
    net.weight.data = first
    assert movement.moved(dict(net.named_parameters()), closely=True) == ["weight"]


@pytest.mark.parametrize("written", [False, True])
def test_a_vocabulary_that_was_cut_is_told_with_its_shapes(written, tmp_path):
    """transformers resizes embeddings through `.data`: the parameter stays the same object."""
    model = nn.Sequential(nn.Embedding(30, 16), nn.Flatten(), nn.Linear(80, 3))
    ids = torch.randint(0, 20, (6, 5))
    memory = retain.MAS(model).observe(ids, progress=False).consolidate()
    model[0].weight.data = model[0].weight.data[:20].clone()
    if written:
        with torch.no_grad():
            model[0].weight.add_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for asked in (memory.penalty, memory.drift, lambda: memory.attach(optimizer)):
        with pytest.raises(ModelError, match=r"0\.weight was \(30, 16\) and is \(20, 16\)"):
            asked()
    memory.save(tmp_path / "memory.safetensors")  # what is remembered is not lost
    assert "0.weight" in str(memory.check())


def test_a_memory_of_another_model_is_told_of_although_most_of_its_weights_are_scales(tmp_path):
    """Those of norms are ones in every model, and large beside small matrices."""

    def made():
        model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.Linear(64, 3))
        with torch.no_grad():
            for layer in (model[0], model[2]):
                layer.weight.mul_(0.05)
                layer.bias.zero_()
        return model

    torch.manual_seed(0)
    one = made()
    retain.MAS(one).observe(torch.randn(8, 8)).consolidate().save(tmp_path / "memory.safetensors")
    trained = copy.deepcopy(one)
    with torch.no_grad():
        for weight in (trained[0].weight, trained[2].weight):
            away = torch.randn_like(weight)
            weight.add_(away * (2.5 * weight.norm() / away.norm()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retain.load(tmp_path / "memory.safetensors", one)
        retain.load(tmp_path / "memory.safetensors", trained)
    with pytest.warns(UserWarning, match="far from those that MAS remembers"):
        retain.load(tmp_path / "memory.safetensors", made())
