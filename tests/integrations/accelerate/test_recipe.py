"""Accelerate: `prepare`, `accumulate`, and a memory attached to what `prepare` returned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import retain

accelerate = pytest.importorskip("accelerate")


def remembered():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    memory = retain.MAS(net, strength=0.5)
    memory.observe(torch.randn(20, 5), progress=False).consolidate()
    return net, memory


@pytest.fixture
def accelerator():
    """As a script has it; what is shared by all of them is made anew."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    yield lambda **settings: accelerate.Accelerator(cpu=True, **settings)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def loader():
    torch.manual_seed(5)
    data = TensorDataset(torch.randn(12, 5), torch.randint(0, 3, (12,)))
    return DataLoader(data, batch_size=3)


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_accumulated_steps_are_those_of_a_plain_loop(form, kind, accelerator):
    net, memory = remembered()
    twin, theirs = copy.deepcopy((net, memory))
    here = accelerator(gradient_accumulation_steps=2)
    model, optimizer, batches = here.prepare(net, kind(net.parameters(), lr=0.05), loader())
    memory.attach(optimizer, form=form)
    for x, y in batches:
        with here.accumulate(model):
            here.backward(cross_entropy(model(x), y))
            if here.sync_gradients:
                here.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    plain = kind(twin.parameters(), lr=0.05)
    theirs.attach(plain, form=form)
    for index, (x, y) in enumerate(loader()):
        (cross_entropy(twin(x), y) / 2).backward()
        if index % 2:
            nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
            plain.step()
            plain.zero_grad()
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q)


def test_the_wrapper_and_what_it_wraps_are_one(accelerator):
    net, memory = remembered()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    wrapped = accelerator().prepare(optimizer)
    with memory.attach(wrapped), memory.attach(optimizer):
        before = [p.detach().clone() for p in net.parameters()]
        with torch.no_grad():
            for p in net.parameters():
                p.add_(1.0)
        pull = torch.autograd.grad(memory.penalty(), list(net.parameters()))
        moved = [p.detach().clone() for p in net.parameters()]
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        wrapped.step()
    for p, m, g, b in zip(net.parameters(), moved, pull, before):
        torch.testing.assert_close(p.detach(), m - 0.1 * g)
        assert not torch.equal(p, b)
