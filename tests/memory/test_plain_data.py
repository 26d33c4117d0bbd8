"""A memory as plain data: carried in checkpoints, copied and pickled, never half loaded."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError, RetainError

DATA = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


def network(hidden=6, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def moved(model, by=0.05):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)
    return model


MAKE = {
    "MAS": functools.partial(retain.MAS, strength=2.5, score="norm", include="*", check=False),
    "MAS, stored small": functools.partial(
        retain.MAS, dtype=torch.bfloat16, device="cpu", exclude="2.bias"
    ),
    "LocalMAS": functools.partial(retain.LocalMAS, strength=0.5),
    "EWC": functools.partial(retain.EWC, strength=400, fisher="sampled", seed=3),
    "EWC, online": functools.partial(retain.EWC, online=True, fisher="exact"),
    "SI": functools.partial(retain.SI, damping=0.2),
}


def learns(memory, data=DATA):
    """What a memory does with one task, whatever its kind."""
    if isinstance(memory, retain.SI):
        optimizer = torch.optim.SGD(memory.model.parameters(), lr=0.01)
        with memory.attach(optimizer):
            for x in data.split(4):
                optimizer.zero_grad()
                memory.model(x).square().mean().backward()
                optimizer.step()
    else:
        memory.observe(data, progress=False)
    return memory


def experienced(make):
    """A memory with two tasks consolidated and a third one begun."""
    memory = make(network())
    for _ in range(2):
        learns(memory).consolidate()
        moved(memory.model)
    return learns(memory, DATA[:5])


def tensors(value, path=""):
    """Every tensor in nested mappings, by its path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if isinstance(value, dict):
        return {p: t for k, v in value.items() for p, t in tensors(v, f"{path}/{k}").items()}
    return {}


def assert_same(one, other):
    a, b = one.state_dict(), other.state_dict()
    assert {k: v for k, v in a.items() if k != "tensors"} == {
        k: v for k, v in b.items() if k != "tensors"
    }
    assert tensors(a).keys() == tensors(b).keys()
    for path, tensor in tensors(a).items():
        assert torch.equal(tensor, tensors(b)[path]), path
        assert tensor.dtype == tensors(b)[path].dtype
    assert torch.equal(one.importance["0.weight"], other.importance["0.weight"])


def assert_goes_on_alike(one, other):
    """Both do the same from here on: with the data, with random draws, and with the weights."""
    for memory in (one, other):
        learns(memory, DATA[5:]).consolidate()
        moved(memory.model, 0.1)
    assert one.penalty() > 0
    assert torch.equal(one.penalty(), other.penalty())


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_a_training_checkpoint_carries_it(make, tmp_path):
    memory = experienced(make)
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": memory.model.state_dict(), "memory": memory.state_dict()}, path)
    checkpoint = torch.load(path, weights_only=True)
    model = network()
    model.load_state_dict(checkpoint["model"])
    again = type(memory)(model)  # with other settings, which the state's take the place of
    again.load_state_dict(checkpoint["memory"])
    assert_same(memory, again)
    assert_goes_on_alike(memory, again)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
@pytest.mark.parametrize(
    "through",
    [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_brings_a_model_of_its_own(make, through):
    memory = experienced(make)
    twin = through(memory)
    assert type(twin) is type(memory)
    assert twin.model is not memory.model
    assert_same(memory, twin)
    assert_goes_on_alike(memory, twin)
    assert_same(memory, twin)


@pytest.mark.parametrize("order", [1, -1])
def test_model_and_memory_copied_together_stay_together(order):
    memory = experienced(MAKE["MAS"]).consolidate()
    both = copy.deepcopy((memory.model, memory)[::order])[::order]
    model, twin = both
    assert twin.model is model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    with twin.attach(optimizer):
        moved(model).zero_grad()
        optimizer.step()
    assert not torch.equal(model[0].weight, before + 0.05), "the copy is not held"
    assert torch.equal(memory.model[0].weight, before)


def test_a_shallow_copy_shares_the_model_and_nothing_that_grows():
    memory = experienced(MAKE["MAS"])
    twin = copy.copy(memory)
    assert twin.model is memory.model
    twin.observe(DATA)
    assert memory.observed.samples == 5
    assert twin.observed.samples == 17


def test_copies_are_not_attached():
    memory = experienced(MAKE["MAS"]).consolidate()
    optimizer = torch.optim.SGD(memory.model.parameters(), lr=0.1)
    memory.attach(optimizer)
    model, twin = copy.deepcopy((memory.model, memory))
    twin.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RetainError, match="attached already"):
        memory.attach(optimizer, form="proximal")


def test_a_memory_with_a_function_that_pickle_cannot_hold():
    memory = retain.MAS(network(), output=lambda returned: returned[:, :2])
    with pytest.raises(RetainError, match=r"output=.*pickled.*state_dict\(\)"):
        pickle.dumps(memory)
    twin = copy.deepcopy(memory)
    assert twin.observe(DATA).observed.samples == 12


def test_what_was_taken_does_not_grow_and_what_was_loaded_is_not_shared():
    memory = experienced(MAKE["MAS"])
    state = memory.state_dict()
    before = {path: tensor.clone() for path, tensor in tensors(state).items()}
    memory.observe(DATA)
    memory.load_state_dict(state)
    assert memory.observed.samples == 5
    memory.observe(DATA).consolidate()
    for path, tensor in tensors(state).items():
        assert torch.equal(tensor, before[path]), path


def test_the_anchor_is_where_the_weights_are_held():
    memory = retain.EWC(network())
    assert memory.anchor == {}
    places = []
    for _ in range(2):
        memory.observe(DATA).consolidate()
        places.append({n: p.detach().clone() for n, p in memory.model.named_parameters()})
        moved(memory.model)
    assert memory.anchor.keys() == places[1].keys()
    for name, star in memory.anchor.items():
        assert torch.equal(star, places[1][name])
    kept = memory.state_dict()["tensors"]
    assert torch.equal(kept["anchor.0"]["0.weight"], places[0]["0.weight"])


def test_an_output_function_stays_and_one_that_is_missing_is_asked_for():
    def output(returned):
        return returned[:, :2]

    model = network()
    memory = retain.MAS(model, output=output).observe(DATA)
    again = retain.MAS(model, output=output)
    again.load_state_dict(memory.state_dict())
    again.observe(DATA)
    assert again.output is output
    without = retain.MAS(model)
    without.load_state_dict(memory.state_dict())
    with pytest.raises(RetainError, match="output="):
        without.observe(DATA)


def test_a_handle_goes_on_with_what_was_loaded():
    memory = experienced(MAKE["MAS"]).consolidate()
    again = retain.MAS(memory.model, strength=0.0)
    optimizer = torch.optim.SGD(memory.model.parameters(), lr=0.1)
    again.attach(optimizer)
    again.load_state_dict(memory.state_dict())
    before = moved(memory.model)[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(memory.model[0].weight, before)


def test_every_missing_unexpected_and_misshapen_name_is_listed():
    state = retain.MAS(network()).observe(DATA).consolidate().state_dict()
    other = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3, bias=False), nn.PReLU())
    memory = retain.MAS(other).observe(DATA)
    with pytest.raises(InputError) as caught:
        memory.load_state_dict(state)
    for said in (
        "The state does not match the model",
        "missing there: 3.weight (1,)",
        "unexpected, not in the model: 2.bias (3,)",
        "0.weight (6, 4) there, (7, 4) in the model",
    ):
        assert said in str(caught.value)
    assert memory.observed.samples == 12
    assert memory.tasks == 0


def test_a_grown_model_is_accepted_when_asked_for():
    model = network()
    state = retain.MAS(model).observe(DATA).consolidate().state_dict()
    model.append(nn.Linear(3, 2))
    memory = retain.MAS(model)
    with pytest.raises(InputError, match=r"missing there: 3\.weight"):
        memory.load_state_dict(state)
    memory.load_state_dict(state, strict=False)
    assert memory.tasks == 1


def without(key):
    return lambda state: state.pop(key)


DAMAGE = {
    "nothing": lambda s: s.clear(),
    "of another kind": lambda s: s.update(method="EWC"),
    "newer": lambda s: s.update(format=99),
    "tensors that are none": lambda s: s.update(tensors={"anchor.0": {"0.weight": 3}}),
    "no tensors": without("tensors"),
    "no samples": without("samples"),
    "no settings": without("settings"),
    "settings of another": lambda s: s["settings"].update(colour="red"),
    "a negative strength": lambda s: s.update(strength=-1.0),
    "an unknown type": lambda s: s["settings"].update(dtype="float17"),
    "an anchor missing": lambda s: s["tensors"]["anchor.0"].pop("0.bias"),
    "a kind missing": lambda s: s["tensors"].pop("anchor.0"),
    "another shape": lambda s: s["tensors"]["anchor.0"].update({"0.bias": torch.ones(2)}),
    "whole numbers": lambda s: s["tensors"]["importance.0"].update(
        {"0.bias": torch.ones(6, dtype=torch.int64)}
    ),
    "negative importance": lambda s: s["tensors"]["importance.0"]["0.bias"].fill_(-1),
    "importance that is NaN": lambda s: s["tensors"]["importance.0"]["0.bias"].fill_(torch.nan),
    "an infinite anchor": lambda s: s["tensors"]["anchor.0"]["0.bias"].fill_(torch.inf),
    "sums below zero": lambda s: s["tensors"]["observed"]["0.bias"].fill_(-1),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_state_changes_nothing(change):
    memory = experienced(MAKE["MAS"])
    before = copy.deepcopy(memory)
    state = copy.deepcopy(memory.state_dict())
    change(state)
    with pytest.raises(InputError, match="state"):
        memory.load_state_dict(state)
    assert_same(memory, before)


@pytest.mark.parametrize("given", [None, 3, "memory.pt", [], torch.ones(3), network()])
def test_what_is_no_state(given):
    memory = experienced(MAKE["MAS"])
    with pytest.raises(InputError, match=r"load_state_dict got .*expected what state_dict"):
        memory.load_state_dict(given)


def test_a_generator_that_is_damaged():
    memory = experienced(MAKE["EWC"])
    state = memory.state_dict()
    state["tensors"]["generator"][""] = torch.zeros(3)
    with pytest.raises(InputError, match="The state is damaged"):
        memory.load_state_dict(state)
    assert memory.observed.samples == 5


def test_a_long_check_prints_what_asks_for_something_and_what_moved_farthest():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(150)))
    memory = retain.MAS(model, exclude="149")
    omegas = {n: torch.ones_like(p) for n, p in memory.selection.matching(model).items()}
    del omegas["77.bias"]
    memory.observed = retain.Importance(omegas, 4)
    memory.consolidate()
    memory.exclude = ()
    with torch.no_grad():
        model[3].weight += 1
    check = memory.check()
    lines = str(check).splitlines()
    assert len(check.rows) == 300
    assert len(lines) < 70
    for name in ("3.weight", "77.bias"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert any(line.startswith("… and 240 more") for line in lines)
    assert "Moved without protection: 3.weight." in lines
    with pytest.warns(UserWarning, match=r"have moved .* for 3\.weight\."):
        memory.penalty()


def test_a_checkpoint_of_an_earlier_version_is_taken_up():
    made = experienced(MAKE["MAS"])
    state = made.state_dict() | {"format": 1}
    memory = retain.MAS(network())
    memory.load_state_dict(state)
    assert memory.tasks == made.tasks == 2
    assert all(torch.equal(memory.importance[name], made.importance[name]) for name in made.anchor)
