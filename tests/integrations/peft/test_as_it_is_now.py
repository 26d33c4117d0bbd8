"""The penalty is of the adapters as they are when it is asked for, whatever was done to them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import retain
from retain.errors import StateError
from retain.integrations.peft import LoraPenalty
from tests.calls import counted
from tests.integrations.peft import adapted_models as made

peft = pytest.importorskip("peft")
ON_BOTH = {"target_modules": ["0", "2"]}


def scale(model):
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(3.0)


def assign(model):
    """As `torch.load` and `load_state_dict(assign=True)` do: every parameter is another one."""
    state = {name: t + 0.1 * ("lora_" in name) for name, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def put_in_again(model):
    """An adapter of the same name."""
    config = copy.deepcopy(model.peft_config["default"])
    model.add_adapter("between", copy.deepcopy(config))
    model.set_adapter("between")
    model.delete_adapter("default")
    model.add_adapter("default", config, autocast_adapter_dtype=False)
    model.set_adapter("default")
    model.delete_adapter("between")
    made.disturb(model)


def replace_the_base(model):
    for name, module in model.named_modules():
        if name.endswith("base_layer"):
            module.weight = nn.Parameter(module.weight.detach() + 0.1, requires_grad=False)


def write_to_the_base(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "base_layer.weight" in name:
                p.add_(0.1)


@pytest.mark.parametrize(
    "change", [scale, assign, put_in_again, replace_the_base, write_to_the_base]
)
@pytest.mark.filterwarnings("ignore:.*Merging.*|.*adapter.*")
def test_what_was_changed_counts(change):
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, **ON_BOTH)
    penalty = LoraPenalty(memory, model)
    before = penalty.penalty()
    change(model)
    now = penalty.penalty()
    assert float(now) != pytest.approx(float(before), rel=1e-3)
    theirs = made.merged_penalty(memory, model)
    torch.testing.assert_close(now.detach(), theirs, rtol=1e-9, atol=0)
    leaves = [p for p in model.parameters() if p.requires_grad]
    assert all(g is not None for g in torch.autograd.grad(now, leaves, allow_unused=True))


def test_a_layer_that_is_unfrozen_later_is_held():
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, target_modules=["0"])
    penalty = LoraPenalty(memory, model)
    penalty.penalty()
    head = model.get_base_model()[2].weight.requires_grad_(True)
    with torch.no_grad():
        head.add_(0.1)
    (found,) = torch.autograd.grad(penalty.penalty(), [head])
    omega = memory.importance["2.weight"]
    torch.testing.assert_close(found, 2 * memory.strength * 0.1 * omega)


def train(model, optimizer):
    model(torch.randn(3, 6, dtype=torch.float64)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("form", ["gradient", "adaptive"])
@pytest.mark.parametrize("change", [assign, put_in_again])
@pytest.mark.filterwarnings("ignore:.*adapter.*")
def test_an_optimizer_of_what_was_replaced_is_stopped_before_it_steps(change, form):
    net, memory = made.remembered(made.dense)
    model = made.adapt(net, **ON_BOTH)
    penalty = LoraPenalty(memory, model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    handle = penalty.attach(optimizer, form=form)
    train(model, optimizer)
    change(model)
    for _ in range(2):
        with pytest.raises(StateError, match=r"replaced by others.*this SGD steps the old ones"):
            train(model, optimizer)
    handle.remove()
    anew = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with penalty.attach(anew, form=form):
        train(model, anew)


def test_the_rest_of_a_model_costs_a_step_little():
    """Whether anything has changed is asked before every step, of every module."""

    def calls(others):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), *(nn.LayerNorm(4) for _ in range(others)))
        memory = retain.MAS(net).observe(torch.randn(8, 4), progress=False).consolidate()
        model = made.adapt(net, target_modules=["0"])
        penalty = LoraPenalty(memory, model)
        penalty.penalty()
        return counted(penalty.penalty)

    assert calls(100) - calls(0) < 10 * 100  # it was 6 of each, three a parameter
