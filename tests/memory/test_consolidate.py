"""From what was observed to Ω and θ*, over one task and over many."""

from __future__ import annotations

import copy
import warnings
import weakref

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError, ModelError, NonFiniteError, StateError


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def tasks(count):
    return [torch.randn(5 + 10 * i, 4).double() for i in range(count)]


def wander(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))


def anchors(memory):
    """How many anchors it keeps for the same weight."""
    return sum(kind.startswith("anchor.") for kind in memory.state_dict()["tensors"])


def in_sequence(memory, data, merge="sum"):
    """Consolidate task after task; returns each task's own Ω and the weights at its end."""
    each, weights = [], []
    for x in data:
        memory.observe(x)
        each.append(memory.observed)
        assert memory.consolidate(merge) is memory
        weights.append({n: p.detach().clone() for n, p in memory.model.named_parameters()})
        wander(memory.model)
    return each, weights


def test_consolidating_moves_what_was_observed_and_sets_the_anchor():
    model = network()
    memory = retain.MAS(model).observe(tasks(2)[1])
    observed = dict(memory.observed)
    memory.consolidate()
    assert not memory.observed
    assert memory.observed.samples == 0
    assert memory.importance.samples == 15
    assert memory.tasks == 1
    for name, omega in observed.items():
        assert torch.equal(memory.importance[name], omega)
    assert memory.penalty() == 0
    wander(model)
    assert memory.penalty() > 0
    for name, p in model.named_parameters():
        assert not torch.equal(memory.anchor[name], p), "the anchor is a view"


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("form", ["loss", "gradient", "proximal", "adaptive"])
def test_what_was_consolidated_before_is_let_go(form, kind):
    model, (x,) = network(), tasks(1)
    memory = retain.MAS(model).observe(x).consolidate()
    optimizer = kind(model.parameters(), lr=1e-3)
    if form != "loss":
        memory.attach(optimizer, form=form)
    loss = model(x).square().sum() + (memory.penalty() if form == "loss" else 0)
    loss.backward()
    optimizer.step()
    old = [
        weakref.ref(kept)
        for term in memory.terms
        for kept in (*term.importance.values(), *term.anchor.values())
    ]
    assert len(old) == 8
    del loss
    memory.observe(x).consolidate()
    assert not [kept() for kept in old if kept() is not None]


def test_sum_is_the_papers():
    memory = retain.MAS(network())
    each, weights = in_sequence(memory, tasks(3))
    for name, omega in memory.importance.items():
        torch.testing.assert_close(omega, sum(one[name] for one in each))
        assert torch.equal(memory.anchor[name], weights[-1][name])
    assert memory.importance.samples == 5 + 15 + 25
    assert memory.tasks == 3
    assert anchors(memory) == 1


def test_pool_is_the_mean_over_all_samples():
    memory = retain.MAS(network())
    each, _ = in_sequence(memory, tasks(3), "pool")
    for name, omega in memory.importance.items():
        expected = sum(one.samples * one[name] for one in each) / 45
        torch.testing.assert_close(omega, expected)


@pytest.mark.parametrize("decay", [0, 0.0, 0.3])
def test_a_decay_lets_the_old_fade(decay):
    memory = retain.MAS(network())
    each, _ = in_sequence(memory, tasks(3), decay)
    for name, omega in memory.importance.items():
        expected = decay**2 * each[0][name] + decay * each[1][name] + each[2][name]
        torch.testing.assert_close(omega, expected)


@pytest.mark.parametrize("merge", ["mean", "Sum", 1, 1.0, -0.1, float("nan"), True, None])
def test_another_merge_is_refused_and_nothing_is_lost(merge):
    memory = retain.MAS(network())
    memory.observe(tasks(1)[0])
    with pytest.raises(InputError, match=r'merge=.*"sum", "pool", or a decay'):
        memory.consolidate(merge)
    assert memory.observed.samples == 5
    assert memory.tasks == 0


def test_nothing_to_consolidate():
    memory = retain.MAS(network())
    with pytest.raises(StateError, match="Nothing was observed"):
        memory.consolidate()
    memory.observe(tasks(1)[0]).consolidate()
    with pytest.raises(StateError, match=r"since the last consolidate.*observe\(data\)"):
        memory.consolidate()
    assert memory.tasks == 1


def test_a_head_that_comes_later_joins_and_one_that_is_frozen_stays():
    model = nn.ModuleDict({"body": nn.Linear(4, 5), "heads": nn.ModuleList([nn.Linear(5, 2)])})
    model.double()
    model.forward = lambda x: model["heads"][-1](model["body"](x).tanh())
    memory = retain.MAS(model)
    first, second = tasks(2)
    memory.observe(first).consolidate()
    old = {name: omega.clone() for name, omega in memory.importance.items()}
    model["heads"][0].requires_grad_(False)
    model["heads"].append(nn.Linear(5, 3).double())
    wander(model["body"])
    memory.observe(second)
    new = memory.observed
    assert "heads.0.weight" not in new
    memory.consolidate()
    torch.testing.assert_close(memory.importance["heads.0.weight"], old["heads.0.weight"])
    torch.testing.assert_close(memory.importance["heads.1.weight"], new["heads.1.weight"])
    both = old["body.weight"] + new["body.weight"]
    torch.testing.assert_close(memory.importance["body.weight"], both)


def test_a_changed_shape_is_an_error_before_anything_is_changed():
    model = network()
    memory = retain.MAS(model, exclude="2")
    memory.observe(tasks(1)[0]).consolidate()
    model[0] = nn.Linear(4, 6).double()
    model[2] = nn.Linear(6, 2).double()
    memory.observe(tasks(1)[0])
    with pytest.raises(ModelError, match=r"0\.weight was \(5, 4\) and is \(6, 4\)") as caught:
        memory.consolidate()
    assert "0.bias was (5,)" in str(caught.value)
    assert memory.tasks == 1
    assert memory.observed.samples == 5


def test_a_parameter_that_is_gone():
    model = network()
    memory = retain.MAS(model).observe(tasks(1)[0]).consolidate()
    del model[2]
    with pytest.raises(ModelError, match=r"2\.weight \(2, 5\) is gone; 2\.bias \(2,\) is gone"):
        memory.penalty()
    memory.exclude = ["2"]
    memory.penalty()


def test_separate_ewc_keeps_a_fisher_and_an_anchor_per_task():
    model = network()
    memory = retain.EWC(model, strength=6.0)
    each, weights = in_sequence(memory, tasks(3))
    assert anchors(memory) == 3
    by_hand = sum(
        3.0 * (f[name] * (p - w[name]) ** 2).sum()  # λ/2
        for f, w in zip(each, weights)
        for name, p in model.named_parameters()
    )
    torch.testing.assert_close(memory.penalty(), by_hand)
    for name, omega in memory.importance.items():
        torch.testing.assert_close(omega, sum(one[name] for one in each))
    with pytest.raises(InputError, match=r"online=True"):
        memory.observe(tasks(1)[0]).consolidate(0.5)


@pytest.mark.parametrize("merge", ["sum", 0.9])
def test_online_ewc_keeps_one_fisher_and_the_latest_anchor(merge):
    model = network()
    memory = retain.EWC(model, strength=6.0, online=True)
    each, weights = in_sequence(memory, tasks(3), merge)
    decay = 1.0 if merge == "sum" else merge
    assert anchors(memory) == 1
    by_hand = sum(
        3.0
        * (
            (decay**2 * each[0][name] + decay * each[1][name] + each[2][name])
            * (p - weights[-1][name]) ** 2
        ).sum()
        for name, p in model.named_parameters()
    )
    torch.testing.assert_close(memory.penalty(), by_hand)


@pytest.mark.parametrize("form", ["gradient", "proximal"])
def test_both_forms_of_ewc_take_half_of_the_strength_and_all_tasks(form):
    model = network()
    memory = retain.EWC(model, strength=6.0)
    in_sequence(memory, tasks(2))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    pulls = dict(zip(start, torch.autograd.grad(memory.penalty(), list(model.parameters()))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    memory.attach(optimizer, form=form)
    optimizer.step()
    for name, p in model.named_parameters():
        if form == "gradient":
            expected = start[name] - 0.2 * pulls[name]
        else:
            kept = memory.state_dict()["tensors"]
            terms = [(kept[f"importance.{i}"][name], kept[f"anchor.{i}"][name]) for i in range(2)]
            total = sum(0.2 * 6.0 * omega for omega, _star in terms)
            pulled = sum(0.2 * 6.0 * omega * star for omega, star in terms)
            expected = (start[name] + pulled) / (1 + total)
        torch.testing.assert_close(p.detach(), expected)


def test_importance_that_was_made_elsewhere(tmp_path):
    model, data = network(), tasks(3)[2]
    whole = retain.MAS(model).observe(data).consolidate()
    shards = [retain.MAS(model).observe(part).observed for part in data.split(9)]
    shards[0].save(tmp_path / "shard.safetensors")
    shards[0] = retain.Importance.load(tmp_path / "shard.safetensors")
    memory = retain.MAS(model).observe(data[:1])
    memory.observed = retain.Importance.pool(shards)
    assert memory.observed.samples == 25
    assert memory.observed.routes == shards[0].routes
    memory.consolidate()
    for name, omega in whole.importance.items():
        torch.testing.assert_close(memory.importance[name], omega)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"0.weight": torch.ones(5, 4)}, "observed was set to {"),
        (retain.Importance({}, 0), "expected Importance of samples"),
        (
            retain.Importance({"0.weight": torch.ones(5), "x": torch.ones(1)}, 3),
            r"0\.weight \(5,\), x",
        ),
        (retain.Importance({"0.bias": torch.full((5,), torch.nan)}, 3), r"NaN .*0\.bias"),
        (retain.Importance({"0.bias": torch.full((5,), -1.0)}, 3), "Negative numbers"),
    ],
)
def test_importance_that_is_not_of_this_model(given, said):
    memory = retain.MAS(network()).observe(tasks(1)[0])
    with pytest.raises(retain.RetainError, match=said):
        memory.observed = given
    assert memory.observed.samples == 5


def test_importance_before_anything():
    memory = retain.MAS(network())
    assert len(memory.importance) == 0
    assert memory.importance.samples == 0


def test_routes_are_remembered_for_the_summary():
    memory = retain.MAS(network()).observe(tasks(1)[0]).consolidate()
    assert "linear" in str(memory.importance.summary())


# ---- what storage costs ----


def test_a_type_that_cannot_hold_the_importance_is_refused():
    model = network()
    memory = retain.MAS(model, dtype=torch.float16)
    with torch.no_grad():
        model[2].weight.mul_(1e6)
    memory.observe(tasks(1)[0])
    with pytest.raises(NonFiniteError, match=r"does not fit into torch\.float16.*bfloat16"):
        memory.consolidate()


def test_storage_where_and_as_it_was_asked_for():
    memory = retain.MAS(network(), dtype=torch.bfloat16, device="cpu")
    memory.observe(tasks(1)[0]).consolidate()
    for tensor in (*memory.importance.values(), *memory.anchor.values()):
        assert tensor.dtype == torch.bfloat16
        assert tensor.device == torch.device("cpu")


def test_what_bfloat16_storage_costs():
    """θ* is rounded to 8 bits, Ω too: the pull differs by less than a percent of a far weight."""
    model = network()
    data = tasks(2)[1]
    exact = retain.MAS(model).observe(data).consolidate()
    rough = retain.MAS(model, dtype=torch.bfloat16).observe(data).consolidate()
    at_home = rough.penalty()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    a = torch.autograd.grad(exact.penalty(), list(model.parameters()))
    b = torch.autograd.grad(rough.penalty(), list(model.parameters()))
    for g, h in zip(a, b):
        assert (g - h).norm() < 0.01 * g.norm()
    assert 0 < at_home < 1e-4 * exact.penalty()


def test_a_copy_is_a_memory_of_its_own():
    memory = retain.MAS(network()).observe(tasks(1)[0]).consolidate()
    twin = copy.deepcopy(memory)
    twin.observe(tasks(1)[0]).consolidate()
    assert (memory.tasks, twin.tasks) == (1, 2)
    assert memory.importance.samples == 5


def test_a_small_layer_that_was_trained_and_loaded_is_not_taken_for_fresh():
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))  # noqa: E731
    trained, loaded, x = make(), make(), torch.randn(16, 5)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        trained(x).square().mean().backward()
        optimizer.step()
    loaded.load_state_dict(trained.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retain.MAS(loaded).observe(x, progress=False).consolidate()
    loaded[2] = nn.Linear(8, 3)
    with pytest.warns(UserWarning, match="^2: still as initialised"):
        retain.MAS(loaded).observe(x, progress=False).consolidate()
