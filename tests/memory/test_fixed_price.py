"""What surrounds a batch costs as much for a small network as for a large one: it stays small."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import retain
from tests.calls import counted

CALLS = 3000  # of Python functions and built-in ones; there were 2,680 when this was written


def test_a_batch_takes_few_calls_of_functions():
    """In place of its time: that of a batch of a millisecond is mostly Python's."""
    model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3))
    mask = (torch.rand(9, 12) > 0.5).float()
    model[0].weight.register_hook(lambda g: g * mask)
    memory, batch = retain.MAS(model), torch.randn(8, 12)
    for _ in range(3):
        memory.observe([batch])
    assert counted(lambda: memory.observe([batch])) < CALLS
    assert counted(lambda: memory.observe([batch] * 11)) < CALLS + 10 * 0.75 * CALLS


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
}


# Most calls a weight; there were 24, 22 and 52 when this was written.
@pytest.mark.parametrize(("form", "most"), [("gradient", 30), ("proximal", 27), ("adaptive", 60)])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_protected_step_takes_few_calls_for_each_weight(form, most, kind):
    """An accelerator waits for these calls where the weights are small."""

    def added(layers):
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        optimizer = OPTIMIZERS[kind](model.parameters())
        model(torch.randn(3, 4)).sum().backward()
        for _ in range(3):
            optimizer.step()
        alone = counted(optimizer.step)
        memory = retain.MAS(model).observe(torch.randn(8, 4), progress=False).consolidate()
        memory.attach(optimizer, form=form)
        for _ in range(3):
            optimizer.step()
        return counted(optimizer.step) - alone

    assert added(41) - added(1) < most * 80


def test_a_penalty_in_a_loss_takes_few_calls_for_each_weight():
    def calls(layers):
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        memory = retain.MAS(model).observe(torch.randn(8, 4), progress=False).consolidate()
        for _ in range(3):
            memory.penalty().backward()
        return counted(lambda: memory.penalty().backward())

    assert calls(41) - calls(1) < 30 * 80  # there were 24 a weight when this was written
