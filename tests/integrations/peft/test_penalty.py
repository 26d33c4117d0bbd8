"""λ Σ Ω (ΔW)², equal to the memory's own penalty of the merged model, and its gradients."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import retain
from retain.integrations.peft import LoraPenalty, base_weights
from tests.integrations.peft import adapted_models as made

peft = pytest.importorskip("peft")

CASES = {
    "linear": (made.dense, {"target_modules": ["0", "2"]}),
    "rslora": (made.dense, {"target_modules": ["0", "2"], "use_rslora": True}),
    "some layers": (made.dense, {"target_modules": ["2"]}),
    "bias of the adapter": (made.dense, {"target_modules": ["0"], "lora_bias": True}),
    "biases of the model": (made.dense, {"target_modules": ["0"], "bias": "all"}),
    "modules_to_save": (made.dense, {"target_modules": ["0"], "modules_to_save": ["2"]}),
    "embedding": (made.words, {"target_modules": ["table", "out"]}),
    "convolutions": (made.pixels, {"target_modules": ["first", "second"]}),
    "Conv1D": (made.gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "tied embedding": (made.gpt2, {"target_modules": ["wte"]}),
    "experts": (made.experts, {"target_parameters": ["experts.up", "experts.down"]}),
}


def slope(penalty, parameters, towards, step=1e-5):
    """The derivative along a direction, from two values."""

    def value(sign):
        with torch.no_grad():
            for p, d in zip(parameters, towards):
                p.add_(sign * step * d)
        found = float(penalty.penalty().detach())
        with torch.no_grad():
            for p, d in zip(parameters, towards):
                p.sub_(sign * step * d)
        return found

    return (value(1) - value(-1)) / (2 * step)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*|.*Merging.*")
def test_equals_the_memory_on_the_merged_model(case):
    make, settings = CASES[case]
    net, memory = made.remembered(make)
    model = made.adapt(net, **settings)
    penalty = LoraPenalty(memory, model)
    ours = penalty.penalty()
    theirs = made.merged_penalty(memory, model)
    assert float(theirs) > 1e-4
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-9, atol=0)
    leaves = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(ours, leaves, allow_unused=True)
    towards = [torch.randn_like(p) for p in leaves]
    along = sum(float((g * d).sum()) for g, d in zip(found, towards) if g is not None)
    assert along == pytest.approx(slope(penalty, leaves, towards), rel=1e-6)
    assert all(p.grad is None for p in leaves)


def test_a_base_that_is_away_from_the_anchor():
    """As some ways of starting an adapter leave it: they take from the base what they add."""
    net, memory = made.remembered(made.dense)
    made.disturb(net, 0.1)
    model = made.adapt(net, target_modules=["0"])
    penalty = LoraPenalty(memory, model)
    ours = penalty.penalty()
    torch.testing.assert_close(ours.detach(), made.merged_penalty(memory, model), rtol=1e-9, atol=0)
    leaves = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(ours, leaves)
    towards = [torch.randn_like(p) for p in leaves]
    along = sum(float((g * d).sum()) for g, d in zip(found, towards))
    assert along == pytest.approx(slope(penalty, leaves, towards), rel=1e-6)


def test_several_active_adapters():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0", "2"])
    other = peft.LoraConfig(r=3, target_modules=["2"], lora_alpha=5)
    model.add_adapter("other", other, autocast_adapter_dtype=False)
    model.base_model.set_adapter(["default", "other"])
    made.disturb(model)
    ours = LoraPenalty(memory, model).penalty()
    torch.testing.assert_close(ours.detach(), made.merged_penalty(memory, model), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["EWC", "SI-like terms", "two tasks"])
def test_every_memory(kind):
    net, data = made.dense()
    net, data = net.double(), data.double()
    memory = retain.EWC(net, strength=3.0) if kind == "EWC" else retain.MAS(net, strength=3.0)
    memory.observe(data, progress=False).consolidate()
    if kind != "SI-like terms":
        made.disturb(net, 0.05)  # the second task ends elsewhere
        memory.observe(data * 2, progress=False).consolidate()
    model = made.adapt(net, target_modules=["0", "2"])
    ours = LoraPenalty(memory, model).penalty()
    torch.testing.assert_close(ours.detach(), made.merged_penalty(memory, model), rtol=1e-9, atol=0)


def test_a_memory_made_after_wrapping():
    net, before = made.remembered(made.dense)
    torch.manual_seed(0)
    _, data = made.dense()
    model = made.adapt(net, target_modules=["0"], modules_to_save=["2"])
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    expected = float(LoraPenalty(before, model).penalty().detach())
    with base_weights(model) as base:
        after = retain.MAS(base, strength=2.5).observe(data.double(), progress=False).consolidate()
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all("lora_" not in name for name in after.importance)
    assert float(LoraPenalty(after, model).penalty().detach()) == pytest.approx(expected)


def test_a_module_with_adapters_that_is_no_peft_model():
    net, memory = made.remembered(made.dense)
    wrapped = made.adapt(copy.deepcopy(net), target_modules=["0"])
    bare = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0"]), net).double()
    bare.load_state_dict(wrapped.get_base_model().state_dict())
    scale = wrapped.get_base_model()[0].scaling["default"]
    bare[0].scaling["default"] = scale
    assert float(LoraPenalty(memory, bare).penalty()) == float(
        LoraPenalty(memory, wrapped).penalty()
    )


def test_no_change_is_no_penalty():
    net, memory = made.remembered(made.dense)
    model = peft.get_peft_model(net, peft.LoraConfig(target_modules=["0"]))
    penalty = LoraPenalty(memory, model)
    assert float(penalty.penalty()) == 0
    assert penalty.drift().distance == 0


def test_drift_is_that_of_the_merged_model():
    net, memory = made.remembered(made.dense)
    base = copy.deepcopy(memory)  # and of the model, before it is wrapped
    model = made.adapt(net, target_modules=["0"], modules_to_save=["2"])
    penalty = LoraPenalty(memory, model)
    ours = penalty.drift()
    merged = copy.deepcopy(model).merge_and_unload()
    theirs = base.forecast({name: p.detach() for name, p in merged.named_parameters()})
    assert ours.relative > 0
    assert ours.relative == pytest.approx(theirs.relative)
    assert ours.distance == pytest.approx(theirs.distance)
    assert memory.strength * ours.penalty == pytest.approx(float(penalty.penalty().detach()))
    assert dict(ours.parameters).keys() == dict(theirs.parameters).keys()


def test_parts_of_a_large_weight_add_up(monkeypatch):
    net, memory = made.remembered(made.dense)
    penalty = LoraPenalty(memory, made.adapt(net, target_modules=["0", "2"]))
    leaves = [p for p in penalty.model.parameters() if p.requires_grad]
    whole = penalty.penalty()
    gradients = torch.autograd.grad(whole, leaves)
    monkeypatch.setattr("retain.integrations.peft.low_rank.PART", 13)
    parts = penalty.penalty()
    torch.testing.assert_close(parts, whole)
    for one, other in zip(torch.autograd.grad(parts, leaves), gradients):
        torch.testing.assert_close(one, other)


def test_a_large_weight_is_never_held_a_second_time():
    """The largest allocation of a penalty with its gradients is far below ΔW."""
    side = 2048
    net = nn.Sequential(nn.Linear(side, side, bias=False))
    memory = retain.MAS(net).observe(torch.randn(2, side), progress=False).consolidate()
    penalty = LoraPenalty(memory, made.adapt(net, target_modules=["0"]))
    penalty.penalty()
    with torch.profiler.profile(profile_memory=True) as seen:
        penalty.penalty().backward()
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert largest < side * side * 4 * 0.6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_importance_in_half_precision(dtype):
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0", "2"])
    exact, rounded = LoraPenalty(memory, model), LoraPenalty(memory, model, dtype=dtype)
    assert float(rounded.penalty()) == pytest.approx(float(exact.penalty()), rel=0.01)
    assert rounded.held().every_block()[0].holds[0].importance.dtype == dtype


def test_a_memory_kept_in_half_precision_sees_no_drift_in_its_own_rounding():
    net, data = made.dense()
    memory = retain.MAS(net, dtype=torch.bfloat16).observe(data, progress=False).consolidate()
    model = peft.get_peft_model(net, peft.LoraConfig(target_modules=["0"]))
    assert float(LoraPenalty(memory, model).penalty()) == 0


def test_half_precision_adapters():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0", "2"])
    exact = LoraPenalty(memory, model).penalty()
    rounded = LoraPenalty(memory, copy.deepcopy(model).to(torch.bfloat16))
    value = rounded.penalty()
    value.backward()
    assert float(value) == pytest.approx(float(exact), rel=0.05)
    assert all(
        p.grad.dtype == torch.bfloat16 for p in rounded.model.parameters() if p.requires_grad
    )


def test_strength_and_exclusions_are_followed():
    net, memory = made.remembered(made.dense)
    penalty = LoraPenalty(memory, made.adapt(net, target_modules=["0", "2"]))
    before = float(penalty.penalty())
    memory.strength *= 2
    assert float(penalty.penalty()) == pytest.approx(2 * before)
    memory.exclude = ["0"]
    assert 0 < float(penalty.penalty()) < 2 * before
    assert "0.weight" not in penalty.drift().parameters


def test_before_anything_was_learned():
    net, _ = made.dense()
    memory = retain.MAS(net)
    model = made.adapt(net, target_modules=["0"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty = LoraPenalty(memory, model)  # a memory may still be loaded into it
    with pytest.warns(UserWarning, match="Nothing is protected yet"):
        assert float(penalty.penalty()) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty.penalty().backward()


def test_a_step_that_nothing_protects_is_told_once():
    net, _ = made.dense()
    penalty = LoraPenalty(retain.MAS(net), made.adapt(net, target_modules=["0"]))
    trained = [p for p in penalty.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    penalty.attach(optimizer)
    with pytest.warns(UserWarning, match="Nothing is protected yet"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_adapters_that_are_disabled_add_nothing():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0"], modules_to_save=["2"])
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    penalty = LoraPenalty(memory, model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    penalty.attach(optimizer, form="adaptive")
    enabled, drift = penalty.penalty().detach(), penalty.drift().relative
    assert enabled > 0
    before = [p.detach().clone() for p in model.parameters()]
    with model.disable_adapter():
        assert penalty.penalty() == 0
        assert penalty.drift().relative == 0
        optimizer.step()
    assert all(torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True))
    torch.testing.assert_close(penalty.penalty().detach(), enabled)
    assert penalty.drift().relative == drift
    with model.disable_adapter():
        first = LoraPenalty(memory, model)  # made where they are disabled
        assert first.penalty() == 0
    torch.testing.assert_close(first.penalty().detach(), enabled)
