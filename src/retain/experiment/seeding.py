"""Random numbers as a function of (seed, task, purpose): a task can be redone from its start."""

from __future__ import annotations

import hashlib

import torch


def seed_for(*parts: object) -> int:
    """A seed of 63 bits that depends on all of `parts` and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def start_drawing(*parts: object) -> torch.Generator:
    """Seed the global random state from `parts`; give a generator for the order of the data."""
    seed = seed_for(*parts)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed_for(seed, "order"))
