"""l-MAS as a user holds it: forward passes alone, also while serving."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError, StateError

X = torch.rand(12, 4, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def hebb(model, x):
    """Ω_ij = 1/N Σₖ 2 yᵢ yⱼ: twice the mean co-activation of the two neurons."""
    model = model.eval()
    with torch.no_grad():
        y = model[1](model[0](x))
        z = model[3](model[2](y))
    n = len(x)
    return {
        "0.weight": 2 * y.T @ x / n,
        "0.bias": 2 * y.mean(0),
        "2.weight": 2 * z.T @ y / n,
        "2.bias": 2 * z.mean(0),
    }


def assert_hebb(importance, model, x):
    expected = hebb(model, x)
    assert importance.samples == len(x)
    assert list(importance) == list(expected)
    for name, omega in expected.items():
        torch.testing.assert_close(importance[name], omega)


def test_after_relu_it_is_hebbs_rule(model):
    assert_hebb(retain.LocalMAS(model).observe(X).observed, model, X)


def test_no_backward_is_run(model, monkeypatch):
    def fails(*_args, **_kwargs):
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "grad", fails)
    monkeypatch.setattr(torch.Tensor, "backward", fails)
    recorded = []
    model[4].register_forward_hook(lambda _m, _a, out: recorded.append(out.requires_grad))
    assert_hebb(retain.LocalMAS(model).observe(X).observed, model, X)
    assert not any(recorded)


@pytest.mark.parametrize("serving", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_observing_while_serving(model, serving):
    memory = retain.LocalMAS(model)
    with serving(), memory.observing() as same:
        answers = [model(part) for part in X.split(5)]
    assert same is memory
    torch.testing.assert_close(torch.cat(answers), model(X))
    assert_hebb(memory.observed, model, X)
    model(X)
    assert memory.observed.samples == 12, "it observes on, though the block is left"
    memory.observe(X)
    memory.consolidate()
    with torch.no_grad():
        model[0].weight.add_(1)
    memory.penalty().backward()
    assert model[0].weight.grad.abs().max() > 0


def test_one_batch_in_k(model):
    memory = retain.LocalMAS(model)
    with torch.no_grad(), memory.observing(every=3):
        for part in X.split(2):
            model(part)
    assert memory.observed.samples == 4


def test_an_interrupt_while_serving_keeps_what_was_seen(model):
    memory = retain.LocalMAS(model)

    def serve():
        with torch.no_grad(), memory.observing():
            model(X)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve()
    assert_hebb(memory.observed, model, X)
    assert not model._forward_hooks
    assert not model[0]._forward_hooks


def test_a_step_in_between_is_refused_until_it_is_consolidated(model):
    memory = retain.LocalMAS(model).observe(X).consolidate()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer)
    with memory.observing():
        model(X)
    with pytest.raises(StateError, match="12 samples were observed and never consolidated"):
        optimizer.step()
    memory.consolidate("pool")
    optimizer.step()


def test_heads_and_what_has_no_rule_stay_free(model):
    model.append(nn.LayerNorm(3)).append(nn.Linear(3, 2))
    memory = retain.LocalMAS(model, strength=1e6).observe(X).consolidate()
    assert "6.weight" not in memory.importance
    assert "5.weight" not in memory.importance
    assert "4.weight" in memory.importance
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer, form="proximal")
    before = model[6].weight.clone()
    model(X).square().sum().backward()
    optimizer.step()
    assert (model[6].weight - before).abs().max() > 1e-4


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_every(model, every):
    memory = retain.LocalMAS(model)
    with pytest.raises(InputError, match="every="), memory.observing(every=every):
        pass
