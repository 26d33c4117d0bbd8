"""Samples that are observed at other weights than the first ones are not added without a word."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import retain
from retain.errors import ModelError
from retain.memory import outset

X, MORE = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()


def network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    for p in model.parameters():  # no layer is taken for fresh
        nn.init.normal_(p, std=2.0)
    return model


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(X.to(model[0].weight.dtype)).square().mean().backward()
    optimizer.step()


def replace_a_layer(model):
    model[2] = network(seed=2)[2]


def load(model):
    model.load_state_dict(network(seed=2).state_dict(), assign=True)


def write_data(model):
    for p in model.parameters():
        p.data = p.data + 1


def put_a_copy(model):
    model[0] = copy.deepcopy(model[0])


def cast(model):
    model.double()


def train_and_go_back(model):
    before = copy.deepcopy(model.state_dict())
    train(model)
    model.load_state_dict(before)


def observe(memory, x):
    x = x.to(memory.model[0].weight.dtype)
    if isinstance(memory, retain.LocalMAS):  # as it does while serving
        with memory.observing():
            memory.model(x)
    else:
        memory.observe(x, progress=False)


@pytest.mark.parametrize("kind", [retain.MAS, retain.LocalMAS])
@pytest.mark.parametrize("change", [train, replace_a_layer, load, write_data])
def test_other_weights_are_told_once_and_named(kind, change):
    memory = kind(network())
    observe(memory, X)
    change(memory.model)
    with pytest.warns(UserWarning, match=r"2\.bias: trained or replaced since .* first 6 samples"):
        observe(memory, MORE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.consolidate()


@pytest.mark.parametrize("change", [train, load])
def test_they_are_told_where_nothing_more_is_observed(change):
    memory = retain.MAS(network()).observe(X, progress=False)
    change(memory.model)
    with pytest.warns(UserWarning, match="trained or replaced since"):
        memory.consolidate()


def saved_and_loaded(memory, folder):
    memory.save(folder / "memory.safetensors")
    return retain.load(folder / "memory.safetensors", memory.model)


def carried(memory, _folder):
    other = type(memory)(memory.model)
    other.load_state_dict(memory.state_dict())
    return other


@pytest.mark.parametrize("kind", [retain.MAS, retain.LocalMAS])
@pytest.mark.parametrize("kept", [saved_and_loaded, carried])
@pytest.mark.parametrize("change", [train, load, write_data])
def test_sums_that_were_saved_know_their_weights(kind, kept, change, tmp_path):
    memory = kind(network())
    observe(memory, X)
    change(memory.model)
    memory = kept(memory, tmp_path)
    with pytest.warns(UserWarning, match="trained or replaced since .* first 6 samples"):
        observe(memory, MORE)


@pytest.mark.parametrize("kept", [saved_and_loaded, carried])
@pytest.mark.parametrize("change", [lambda model: None, put_a_copy, cast])
def test_sums_that_were_saved_go_on_with_their_weights(kept, change, tmp_path):
    memory = retain.MAS(network()).observe(X, progress=False)
    change(memory.model)
    memory = kept(memory, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.observe(MORE.to(memory.model[0].weight.dtype), progress=False).consolidate()
    assert memory.importance.samples == 12


def test_what_joins_after_sums_were_saved_is_refused(tmp_path):
    model = network()
    model[0].requires_grad_(False)
    memory = saved_and_loaded(retain.MAS(model).observe(X, progress=False), tmp_path)
    model[0].requires_grad_(True)
    with pytest.raises(ModelError, match=r"0\.weight.* not there"):
        memory.observe(MORE, progress=False)


def test_elements_in_a_file_that_are_none_are_damage():
    memory = retain.MAS(network()).observe(X, progress=False)
    state = memory.state_dict()
    state["tensors"]["observed_at"]["0.weight"] = torch.zeros(2, 2)
    with pytest.raises(retain.errors.InputError, match=r"observed_at/0\.weight"):
        memory.load_state_dict(state)


@pytest.mark.parametrize("change", [put_a_copy, cast, train_and_go_back])
def test_the_same_weights_in_another_form_are_the_same(change):
    memory = retain.MAS(network()).observe(X, progress=False)
    change(memory.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observe(memory, MORE)
        memory.consolidate()
        observe(memory, X)  # a new beginning


def test_what_is_consolidated_is_done_with():
    memory = retain.MAS(network()).observe(X, progress=False).consolidate()
    optimizer = torch.optim.SGD(memory.model.parameters(), lr=1e-3)
    with warnings.catch_warnings(), memory.attach(optimizer):
        warnings.simplefilter("error")
        memory.model(X).square().mean().backward()
        optimizer.step()
        memory.observe(X, progress=False).observe(MORE, progress=False).consolidate()


def test_a_layer_that_was_frozen_for_the_first_samples_has_no_mean():
    """Its sum would be over fewer samples than the count says: half of Ω, or less."""
    model = network()
    model[0].requires_grad_(False)
    memory = retain.MAS(model).observe(X, progress=False)
    model[0].requires_grad_(True)
    with pytest.raises(ModelError, match=r"0\.weight, 0\.bias .*frozen .* first 6 samples"):
        memory.observe(MORE, progress=False)
    assert memory.observed.samples == len(X)
    model[0].requires_grad_(False)
    memory.consolidate()


def test_a_layer_that_is_left_out_later():
    memory = retain.MAS(network()).observe(X, progress=False)
    memory.exclude = "2"
    with pytest.raises(ModelError, match=r"2\.weight was .* left out"):
        memory.observe(MORE, progress=False)


def test_weights_that_nobody_has_touched_are_not_read_again(monkeypatch):
    """Whoever observes every batch by itself does not wait for all of them each time."""
    read, differs = [], outset._Glimpse.differs
    monkeypatch.setattr(
        outset._Glimpse, "differs", lambda own, p: read.append(p) or differs(own, p)
    )
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9)))
    memory = retain.MAS(model).observe(X, progress=False)
    read.clear()
    memory.observe(X, progress=False)
    assert len(read) == 1
    with torch.no_grad():
        model[3].weight.mul_(1)  # the same in the end
    memory.observe(X, progress=False)
    assert len(read) <= 3


@pytest.mark.filterwarnings("ignore")
def test_a_write_without_a_mark_is_noticed_in_time():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    memory = retain.MAS(model).observe(X, progress=False)
    model[1].bias.data.add_(1)
    with pytest.warns(UserWarning, match=r"1\.bias.*trained or replaced"):
        observe_often(memory)


def observe_often(memory):
    for _ in range(6):
        memory.observe(X, progress=False)
