"""Threads that are worth their price: small networks are quicker with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from retain.models import TaskNetwork

# Operations of a batch's forward pass below which sharing them takes longer than doing them.
# Measured with two cores, time of a step with one thread over time with two: 64-100-100, batches of
# 16 (5e5): 0.66; 784-400-400, batches of 16 (2e7): 0.76, of 64 (6e7): 1.67, of 128 (1e8): 1.79.
SMALL = 1e7


@contextmanager
def worthwhile_threads(
    network: TaskNetwork, input_shape: tuple[int, ...], batch_size: int
) -> Iterator[None]:
    """Within it torch computes with one thread, if a batch is little work for `network`."""
    before = torch.get_num_threads()
    if batch_size * operations(network, input_shape) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def operations(network: TaskNetwork, input_shape: tuple[int, ...]) -> float:
    """Floating-point operations of a forward pass of the backbone, per sample."""
    device = next(network.backbone.parameters()).device
    training = network.training
    network.eval()
    inputs = torch.zeros(2, *input_shape, device=device)
    with FlopCounterMode(display=False) as counter:
        network.features(inputs)
    network.train(training)
    return float(counter.get_total_flops()) / len(inputs)
