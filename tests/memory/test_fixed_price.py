"""What surrounds a batch costs as much for a small network as for a large one: it stays small."""

from __future__ import annotations

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
