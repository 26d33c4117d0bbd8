"""Where a run computes, and that it computes the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from retain.errors import ConfigError


def chosen_device(name: str) -> torch.device:
    """The device called `name`; with "auto" an accelerator if there is one.

    Raises:
        ConfigError: there is none of that name here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"The device {name!r} cannot be used: {reason}") from None
    return device


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Within it random numbers are one's own, and kernels give the same numbers every time.

    Afterwards the global random state and the flags are as they were. (Kernels on the CPU give the
    same numbers anyway.)
    """
    cuda = device.type == "cuda"
    flags = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )
    with torch.random.fork_rng(devices=[device] if cuda else []):
        try:
            if cuda:
                torch.use_deterministic_algorithms(True, warn_only=True)
                torch.backends.cudnn.benchmark = False
            yield
        finally:
            torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])
            torch.backends.cudnn.benchmark = flags[2]
