"""Accuracy, measured in large batches and read from the device once."""

from __future__ import annotations

import math

import torch

from retain.models import TaskNetwork
from retain.tasks import Examples

BATCH = 1000
LARGE_INPUT = 64 * 64  # numbers in an input; of larger ones a batch holds fewer
LARGE_BATCH = 200


def pass_size(input_shape: tuple[int, ...]) -> int:
    """Samples per batch where nothing is trained."""
    return BATCH if math.prod(input_shape) <= LARGE_INPUT else LARGE_BATCH


@torch.no_grad()
def accuracy(
    network: TaskNetwork, task: int, examples: Examples, *, size: int, device: torch.device
) -> float:
    """The part of `examples` that the network gets right with the head of `task`, in [0, 1]."""
    before = network.task, network.training
    network.eval()
    network.task = task
    right = torch.zeros((), dtype=torch.int64, device=device)
    for batch in examples.batches(size, device=device):
        right += (network(batch.inputs).argmax(1) == batch.labels).sum()
    network.task = before[0]
    network.train(before[1])
    return right.item() / len(examples)
