"""Whether samples go one after another, or many at once.

A CPU core is kept busy by one sample, whose gradient then stays in its cache. An accelerator is
not, and every operation that it is asked for costs time: there as many samples go together as
there is memory for.
"""

from __future__ import annotations

import torch

SHARE = 8  # of the free memory, one in so many parts may be taken
LEAST, MOST = 1 << 22, 1 << 28  # numbers
OTHERWISE = 1 << 26  # numbers, where a device does not say what is free


def at_once(device: torch.device) -> int | None:
    """How many numbers of per-sample gradients to hold; None: a sample at a time, as in a cache."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return OTHERWISE
    free, _ = torch.cuda.mem_get_info(device)
    return min(MOST, max(LEAST, free // SHARE // torch.float32.itemsize))
