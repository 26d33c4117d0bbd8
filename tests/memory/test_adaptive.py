"""The proximal step with the optimizer's own step sizes: λ means the same for all of them."""

import pytest
import torch
from torch import nn

from retain import MAS
from retain.memory import step_size
from retain.penalty import hold

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "dampened": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.8, "dampening": 0.5}),
    "nesterov": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 4e-3}),
    "amsgrad": (torch.optim.Adam, {"lr": 4e-3, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 4e-3, "weight_decay": 0.0}),
    "nadam": (torch.optim.NAdam, {"lr": 4e-3}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 2e-3}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
}


def protected():
    """A linear model that has learned something, with weights of very different importance."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False).double()
    scales = torch.tensor([0.0, 0.01, 0.1, 1.0, 3.0, 10.0], dtype=torch.float64)
    memory = MAS(model, strength=0.7)
    memory.observe(torch.randn(50, 6, dtype=torch.float64) * scales).consolidate()
    return model, memory


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_comes_to_rest_where_loss_and_penalty_balance(name):
    model, memory = protected()
    omega, star = memory.importance["weight"], model.weight.detach().clone()
    target, h = star + 1.0, 2.0
    kind, settings = OPTIMIZERS[name]
    optimizer = kind(model.parameters(), **settings)
    memory.attach(optimizer, form="adaptive")
    for _ in range(1500):
        optimizer.zero_grad()
        (h / 2 * (model.weight - target).square()).sum().backward()
        optimizer.step()
    # h (θ − t) + 2λΩ (θ − θ*) = 0
    expected = (h * target + 2 * 0.7 * omega * star) / (h + 2 * 0.7 * omega)
    assert torch.allclose(model.weight, expected, atol=0.01)


LASTING = OPTIMIZERS | {
    "adam, fused": (torch.optim.Adam, {"lr": 1e-3, "fused": True}),
    "adamax": (torch.optim.Adamax, {"lr": 1e-3}),
    "radam": (torch.optim.RAdam, {"lr": 1e-3, "betas": (0.9, 0.9)}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "asgd": (torch.optim.ASGD, {"lr": 1e-3, "lambd": 0.0, "alpha": 0.75}),
    "rmsprop, momentum": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5}),
    "rmsprop, centered": (torch.optim.RMSprop, {"lr": 1e-3, "centered": True, "eps": 0.1}),
    "adagrad, decaying": (torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.01}),
}


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("name", LASTING)
def test_the_size_of_a_step_is_how_far_a_lasting_gradient_moves(name, where, monkeypatch):
    if where == "device":
        for module in (hold, step_size):
            monkeypatch.setattr(module, "is_accelerated", lambda _tensor: True)
    kind, settings = LASTING[name]
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    gradient = torch.tensor([-2.0, -0.1, 0.5, 3.0], dtype=torch.float64)
    optimizer = kind([p], **settings)
    for _ in range(400):
        p.grad = gradient.clone()
        before = p.detach().clone()
        optimizer.step()
    ((rate, metric),) = step_size.step_sizes(optimizer, [(p, optimizer.param_groups[0])])
    size = torch.as_tensor(rate, dtype=torch.float64)
    if metric is not None:
        size = size / (metric.factor * metric.square.sqrt() + metric.offset)
    torch.testing.assert_close(before - p.detach(), size * gradient, rtol=0.02, atol=0)


def test_the_learning_rate_alone_would_let_adam_drift():
    model, memory = protected()
    star = model.weight.detach().clone()
    moved = {}
    for form in ("proximal", "adaptive"):
        with torch.no_grad():
            model.weight.copy_(star)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with memory.attach(optimizer, form=form):
            for _ in range(500):
                optimizer.zero_grad()
                (1e-3 * (model.weight - star - 1).square()).sum().backward()
                optimizer.step()
        moved[form] = (model.weight - star).detach()[0, -1].item()
    # a loss so flat, against a weight so important: it should hardly move
    assert moved["adaptive"] < 1e-3
    assert moved["proximal"] > 10 * moved["adaptive"]


def test_one_step_of_adam_by_hand():
    model, memory = protected()
    omega, star = memory.importance["weight"], model.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    memory.attach(optimizer, form="adaptive")
    model.weight.grad = torch.full_like(model.weight, -4.0)
    optimizer.step()
    # the first step is η for every weight, and H = √v̂ + ε = 4
    pull = 2 * 0.1 * 0.7 * omega / (4.0 + 1e-8)
    assert torch.allclose(model.weight, (star + 0.1 + pull * star) / (1 + pull), rtol=1e-9)


def test_is_the_proximal_form_where_the_optimizer_takes_plain_steps():
    after = {}
    for form in ("proximal", "adaptive"):
        model, memory = protected()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        memory.attach(optimizer, form=form)
        for _ in range(5):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        after[form] = model.weight.detach().clone()
    assert torch.equal(after["proximal"], after["adaptive"])


def test_weights_without_importance_or_gradient_are_left_alone():
    model, memory = protected()
    free = nn.Linear(2, 2).double()
    optimizer = torch.optim.Adam([*model.parameters(), *free.parameters()])
    memory.attach(optimizer, form="adaptive")
    before = [p.detach().clone() for p in (*model.parameters(), *free.parameters())]
    optimizer.step()
    model.weight.grad = torch.zeros_like(model.weight)  # v stays 0, and H is ε
    optimizer.step()
    for p, old in zip((*model.parameters(), *free.parameters()), before):
        assert torch.equal(p, old)


@pytest.mark.parametrize("strength", [1e-6, 1.0, 1e12, 1e30])
def test_stable_for_every_strength(strength):
    model, memory = protected()
    memory.strength = strength
    star = model.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    memory.attach(optimizer, form="adaptive")
    for _ in range(20):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    assert torch.isfinite(model.weight).all()
    assert (model.weight - star).abs().max() <= 20 * 0.1 + 1e-9
