"""Whether samples go one after another, or many together.

A CPU core is kept busy by one sample, whose gradient then stays in its cache. An accelerator is
not, and every operation that it is asked for costs time: there as many samples go together as
there is memory for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SHARE = 8  # of the free memory, one in so many parts may be taken
LEAST, MOST = 1 << 22, 1 << 28  # numbers
OTHERWISE = 1 << 26  # numbers, where a device does not say what is free

_seen: list[dict[torch.device, int]] = []  # of each `one_look()` that has begun, the last one's


def room(device: torch.device) -> int | None:
    """How many numbers of per-sample gradients to hold; None: a sample at a time, as in a cache."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return OTHERWISE
    if not _seen:
        return _roomy(device)
    if device not in _seen[-1]:
        _seen[-1][device] = _roomy(device)
    return _seen[-1][device]


def wait(device: torch.device) -> None:
    """Wait until a device has done all that it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def one_look() -> Iterator[None]:
    """Ask a device once, and take its answer for all questions until this ends."""
    _seen.append({})
    try:
        yield
    finally:
        _seen.pop()


def _roomy(device: torch.device) -> int:
    """A share of what is free, or held by PyTorch for whoever asks next."""
    free, _ = torch.cuda.mem_get_info(device)
    again = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(MOST, max(LEAST, (free + again) // SHARE // torch.float32.itemsize))
