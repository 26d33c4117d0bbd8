"""What a run computes with: device, threads and precision; and the same numbers every time."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import torch
from torch.utils.flop_counter import FlopCounterMode

from retain.errors import ConfigError
from retain.models import TaskNetwork
from retain.readable import memory_bytes


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
        torch.ones(1, device=device).item()
    # A device may be missing in many ways: RuntimeError, AssertionError, ImportError …
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"The device {name!r} cannot be used: {reason}") from None
    return device


def refuse_too_large(image_size: int, batch_size: int) -> None:
    """Raise where a batch of images cannot fit in this machine's memory, before it is made.

    Raises:
        ConfigError: it cannot; the message has the estimate.
    """
    room, needed = memory_bytes(), batch_size * 3 * image_size**2 * 4
    if room is not None and needed > room:
        raise ConfigError(
            f"Images of {image_size} × {image_size} in batches of {batch_size}: a batch takes "
            f"{needed / 1e9:,.0f} GB, and this machine has {room / 1e9:,.0f} GB. Give a smaller "
            "image size or smaller batches."
        )


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Within it random numbers are one's own, and kernels give the same numbers every time.

    Afterwards the global random states and the flags are as they were. (Kernels on the CPU give
    the same numbers anyway.)
    """
    cuda = device.type == "cuda"
    flags = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )
    drawn = random.getstate(), numpy.random.get_state(legacy=False)
    with torch.random.fork_rng(devices=[device] if cuda else []):
        try:
            if cuda:
                torch.use_deterministic_algorithms(True, warn_only=True)
                torch.backends.cudnn.benchmark = False
            yield
        finally:
            torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])
            torch.backends.cudnn.benchmark = flags[2]
            random.setstate(drawn[0])
            numpy.random.set_state(drawn[1])


@dataclass(frozen=True)
class Autocast:
    """How a run computes on `device`: in full precision, or with `amp` in mixed precision.

    On CUDA the fewer bits are float16, whose gradients are scaled so that they do not vanish;
    elsewhere bfloat16, which has the range of float32.
    """

    amp: bool
    device: torch.device

    @property
    def scales(self) -> bool:
        """Whether gradients are scaled, so that a step with infinite ones is skipped."""
        return self.amp and self.device.type == "cuda"

    def lowered(self) -> torch.autocast:
        """A context for forward passes."""
        fewer = torch.float16 if self.scales else torch.bfloat16
        return torch.autocast(self.device.type, fewer, enabled=self.amp)

    def scaler(self) -> torch.amp.GradScaler:
        """What scales the loss and takes the steps; one that changes nothing where none is needed.

        Call its `unscale_` before `step`: what is attached to the optimizer sees true gradients.
        """
        return torch.amp.GradScaler(self.device.type, enabled=self.scales)


# Operations of a batch's forward pass below which sharing them takes longer than doing them.
# Measured with two cores, time of a step with one thread over time with two: 64-100-100, batches of
# 16 (5e5): 0.66; 784-400-400, batches of 16 (2e7): 0.76, of 64 (6e7): 1.67, of 128 (1e8): 1.79.
SMALL = 1e7


@contextmanager
def worthwhile_threads(
    network: TaskNetwork,
    input_shape: tuple[int, ...],
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[None]:
    """Within it torch computes with one thread, if a batch is little work for `network`."""
    before = torch.get_num_threads()
    if batch_size * operations(network, input_shape, dtype) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def operations(
    network: TaskNetwork, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> float:
    """Floating-point operations of a forward pass of the backbone, per sample."""
    device = next(network.backbone.parameters()).device
    training = network.training
    network.eval()
    inputs = torch.ones(2, *input_shape, dtype=dtype, device=device)
    with FlopCounterMode(display=False) as counter:
        network.features(inputs)
    network.train(training)
    return float(counter.get_total_flops()) / len(inputs)


def seed_for(*parts: object) -> int:
    """A seed of 63 bits that depends on all of `parts` and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def start_drawing(*parts: object) -> torch.Generator:
    """Seed what draws at random from `parts`; give a generator for the order of the data.

    Python's and NumPy's numbers are seeded as well as torch's: a user's model, tasks or recipe may
    draw from them.
    """
    seed = seed_for(*parts)
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    return torch.Generator().manual_seed(seed_for(seed, "order"))
