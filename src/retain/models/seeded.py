"""Random initialisation that depends on a seed and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with the random states of PyTorch (on the CPU), Python and NumPy set by `seed`.

    Then the old ones are put back. A user's own model may draw from any of the three.
    """
    drawn = random.getstate(), numpy.random.get_state(legacy=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(drawn[0])
            numpy.random.set_state(drawn[1])
