"""Random initialisation that depends on a seed and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with PyTorch's random state on the CPU set by `seed`; then put the old state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
