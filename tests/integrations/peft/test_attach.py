"""Optimizers of adapters, in the three forms."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError, StateError
from retain.integrations.peft import LoraPenalty
from tests.integrations.peft import adapted_models as made

peft = pytest.importorskip("peft")


def adapted(strength=2.5, **settings):
    """(a model with adapters, its penalty, what it is trained on)."""
    net, memory = made.remembered(made.dense)
    memory.strength = strength
    settings = {"target_modules": ["0", "2"], **settings}
    return made.adapt(net, **settings), memory, torch.randn(9, 6).double()


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("modules", [None, ["2"]], ids=["adapters", "and a module"])
def test_the_gradient_form_is_the_penalty_in_the_loss(kind, modules):
    targets = ["0"] if modules else ["0", "2"]
    model, memory, data = adapted(target_modules=targets, modules_to_save=modules)
    twin = copy.deepcopy(model)
    ours, theirs = kind(trained(model), lr=0.01), kind(trained(twin), lr=0.01)
    penalty, other = LoraPenalty(memory, model), LoraPenalty(memory, twin)
    handle = penalty.attach(ours)
    for _ in range(3):
        ours.zero_grad()
        model(data).square().mean().backward()
        own = [p.grad.clone() for p in trained(model)]
        ours.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(trained(model), own))
        theirs.zero_grad()
        (twin(data).square().mean() + other.penalty()).backward()
        theirs.step()
    for p, q in zip(trained(model), trained(twin)):
        torch.testing.assert_close(p, q)
    handle.remove()
    before = float(other.penalty().detach())
    assert float(penalty.penalty().detach()) == pytest.approx(before)


def halves(model):
    """The A and the B of every adapter."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [p for n, p in named if "lora_A" in n], [p for n, p in named if "lora_B" in n]


@pytest.mark.parametrize("form", ["proximal", "adaptive"])
def test_the_steps_that_follow_are_exact_minimisers(form):
    """First in B with A as it is, then in A: the gradient of ½‖x − x₀‖²_H + ηλP is zero."""
    model, memory, data = adapted(strength=7.0)
    penalty = LoraPenalty(memory, model)
    optimizer = torch.optim.Adam(trained(model), lr=0.02)
    free = copy.deepcopy((model, optimizer))
    model(data).square().mean().backward()
    optimizer.step()  # where the step would end without the memory, and the squares of Adam
    a, b = halves(model)
    start = [p.detach().clone() for p in (*a, *b)]
    state = copy.deepcopy(optimizer.state_dict())
    del free
    # The same step again, protected.
    fresh = torch.optim.Adam(trained(model), lr=0.02)
    fresh.load_state_dict(state)
    for group in fresh.param_groups:
        group["lr"] = 0.02
    handle = penalty.attach(fresh, form=form)
    fresh.zero_grad()
    for p in trained(model):
        p.grad = torch.zeros_like(p)
    for p in trained(model):  # so that Adam itself stays where it is
        fresh.state[p]["exp_avg"].zero_()
    fresh.step()
    handle.remove()

    def metric(p):
        if form == "proximal":
            return torch.ones_like(p)
        state = fresh.state[p]
        return (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-8

    ended = [p.detach().clone() for p in (*a, *b)]
    for halves_, others in (((b, slice(len(a), None)), a), ((a, slice(0, len(a))), None)):
        moving, where = halves_
        with torch.no_grad():
            if others is not None:  # B moved while A was where it started
                for p, s in zip(others, start):
                    p.copy_(s)
        gradients = torch.autograd.grad(penalty.penalty(), moving)
        for p, s, g in zip(moving, start[where], gradients):
            balance = metric(p) * (p.detach() - s) + 0.02 * g
            assert balance.abs().max() < 1e-8 * max(1.0, float(g.abs().max()))
        with torch.no_grad():
            for p, e in zip((*a, *b), ended):
                p.copy_(e)


@pytest.mark.parametrize("form", ["proximal", "adaptive"])
@pytest.mark.parametrize("strength", [1e3, 1e12])
def test_stable_for_every_strength(form, strength):
    model, memory, data = adapted(strength=strength)
    penalty = LoraPenalty(memory, model)
    memory.strength = 1.0
    before = float(penalty.penalty().detach())
    memory.strength = strength
    optimizer = torch.optim.Adam(trained(model), lr=0.01)
    penalty.attach(optimizer, form=form)
    for _ in range(20):
        optimizer.zero_grad()
        model(data).sub(1).square().mean().backward()
        optimizer.step()
    memory.strength = 1.0
    after = float(penalty.penalty().detach())
    assert after < 0.05 * before


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
def test_half_precision_importance_and_weights(form):
    net, data = made.dense()
    memory = retain.MAS(net, strength=50.0, dtype=torch.bfloat16)
    memory.observe(data, progress=False).consolidate()
    model = made.adapt(net, target_modules=["0", "2"]).to(torch.bfloat16)
    penalty = LoraPenalty(memory, model, dtype=torch.bfloat16)
    before = float(penalty.penalty().detach())
    optimizer = torch.optim.SGD(trained(model), lr=0.001)
    penalty.attach(optimizer, form=form)
    for _ in range(10):
        optimizer.zero_grad()
        (model(data.to(torch.bfloat16)).float().mean() * 0).backward()
        optimizer.step()
    assert float(penalty.penalty().detach()) < 0.9 * before


def test_several_adapters_are_held_together():
    model, memory, data = adapted(target_modules=["2"], strength=1e6)
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["2"]))
    model.base_model.set_adapter(["default", "other"])
    made.disturb(model)
    penalty = LoraPenalty(memory, model)
    before = float(penalty.penalty().detach())
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    penalty.attach(optimizer, form="proximal")
    for _ in range(3):
        optimizer.zero_grad()
        (0 * model(data).mean()).backward()
        optimizer.step()
    assert float(penalty.penalty().detach()) < 1e-3 * before


def test_a_closure_sees_the_penalty():
    model, memory, data = adapted()
    penalty = LoraPenalty(memory, model)
    optimizer = torch.optim.LBFGS(trained(model), lr=0.1, max_iter=3)
    penalty.attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = model(data).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        expected = float(model(data).square().mean() + penalty.penalty())
    assert float(optimizer.step(closure)) == pytest.approx(expected)


def test_an_optimizer_that_climbs():
    model, memory, _ = adapted()
    penalty = LoraPenalty(memory, model)
    before = float(penalty.penalty().detach())
    optimizer = torch.optim.SGD(trained(model), lr=1e-3, maximize=True)
    penalty.attach(optimizer)
    for p in trained(model):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert float(penalty.penalty().detach()) < before


def test_merged_or_switched_while_attached():
    model, memory, _ = adapted()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["0"]))
    penalty = LoraPenalty(memory, model)
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    handle = penalty.attach(optimizer)
    for p in trained(model):
        p.grad = torch.ones_like(p)
    model.merge_adapter()
    with pytest.raises(StateError, match="unmerge_adapter"):
        optimizer.step()
    model.unmerge_adapter()
    model.set_adapter("other")
    with pytest.raises(StateError, match="Other adapters are active"):
        optimizer.step()
    handle.remove()
    optimizer.step()


def test_an_optimizer_of_something_else():
    model, memory, _ = adapted()
    with pytest.raises(InputError, match="none of the protected parameters"):
        LoraPenalty(memory, model).attach(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


def test_counting_twice_is_said():
    model, memory, _ = adapted()
    penalty = LoraPenalty(memory, model)
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    with penalty.attach(optimizer), pytest.warns(UserWarning, match="counts twice"):
        penalty.penalty().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty.penalty().backward()


def test_saved_under_the_names_of_the_base_model(tmp_path):
    base, _ = made.remembered(made.dense)
    net = copy.deepcopy(base)
    memory = retain.MAS(net, strength=3.0)
    memory.observe(torch.randn(4, 6).double(), progress=False).consolidate()
    penalty = LoraPenalty(memory, made.adapt(net, target_modules=["0"]))
    penalty.save(tmp_path / "memory.safetensors")
    loaded = retain.load(tmp_path / "memory.safetensors", base)
    assert loaded.importance.keys() == memory.importance.keys()
    empty = retain.MAS(copy.deepcopy(base))
    again = LoraPenalty(empty, made.adapt(empty.model, target_modules=["0"]))
    again.load(tmp_path / "memory.safetensors")
    assert again.memory.strength == 3.0
    again.model.load_state_dict(penalty.model.state_dict())
    assert again.penalty() == penalty.penalty()
