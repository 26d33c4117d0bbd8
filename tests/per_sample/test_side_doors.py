"""Gradients that a Function makes by calling backward inside of its own are exact, and stay in."""

import pytest
import torch
from torch import nn

import retain


class Recomputed(torch.autograd.Function):
    """Checkpointing as off-loading trainers write it: the graph does not end in the parameters."""

    @staticmethod
    def forward(ctx, run, h):
        ctx.run = run
        ctx.save_for_backward(h)
        with torch.no_grad():
            return run(h)

    @staticmethod
    def backward(ctx, gradient):
        h = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.run(h)
        torch.autograd.backward(out, gradient)
        return None, h.grad


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x):
        return self.last(Recomputed.apply(self.middle, self.first(x)))


def plainly(model, x):
    return model.last(model.middle(model.first(x)))


@pytest.mark.parametrize("samples", [1, 2, 7])
@pytest.mark.parametrize("include", [None, "middle", "last"])
@pytest.mark.filterwarnings("ignore:.*one sample at a time")
def test_they_are_exact_and_the_users_own_gradient_stays(samples, include):
    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(samples, 5, dtype=torch.float64)
    model.middle[0].weight.grad = torch.ones(6, 6, dtype=torch.float64)
    memory = retain.MAS(model, include=include)
    for _ in range(2):  # also where the graph is known
        memory.observe(x, progress=False)
    for name, omega in memory.observed.items():
        p = model.get_parameter(name)
        truth = torch.zeros_like(p)
        for k in range(samples):
            score = plainly(model, x[k : k + 1]).square().sum()
            truth += torch.autograd.grad(score, p)[0].abs() / samples
        assert truth.any()
        assert torch.allclose(omega, truth, rtol=1e-10, atol=1e-14), name
    assert model.middle[0].weight.grad.eq(1).all()
    assert model.first.weight.grad is None


class Both(Net):
    """A parameter that is reached plainly and by a side door."""

    def forward(self, x):
        h = self.first(x)
        return self.last(Recomputed.apply(self.middle, h) + self.middle(h))


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("include", [None, "middle"])
@pytest.mark.filterwarnings("ignore:.*one sample at a time")
def test_a_parameter_with_two_ways_to_its_gradient(samples, include):
    torch.manual_seed(0)
    model, x = Both().double(), torch.randn(samples, 5, dtype=torch.float64)
    memory = retain.MAS(model, include=include).observe(x, progress=False)
    for name, omega in memory.observed.items():
        p = model.get_parameter(name)
        truth = torch.zeros_like(p)
        for k in range(samples):
            h = model.first(x[k : k + 1])
            score = model.last(2 * model.middle(h)).square().sum()
            truth += torch.autograd.grad(score, p)[0].abs() / samples
        assert torch.allclose(omega, truth, rtol=1e-10, atol=1e-14), name
