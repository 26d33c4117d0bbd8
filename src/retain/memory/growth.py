"""Parameters that have grown since they were consolidated: the old part is held, the rest is free.

A vocabulary or a head that gets more rows keeps the old ones first. Ω of the new part is 0, and θ*
there is what the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from retain.memory.holder import Holder
from retain.memory.movement import Distance
from retain.memory.state import State
from retain.parameters import shape_of
from retain.saying import warn

NEAR = 0.5  # of ‖θ*‖: where the beginning is farther from θ*, it is not the old part


def hold_grown(memory: Holder) -> bool:
    """Whether any parameter has grown; the memory holds the old part of it from here on."""
    picked, anchor = memory.selection.matching(memory.model), memory.anchor
    names = {n: p for n, p in picked.items() if n in anchor and has_grown(p, anchor[n])}
    if not names:
        return False
    said = ", ".join(f"{n} from {tuple(anchor[n].shape)} to {tuple(names[n].shape)}" for n in names)
    memory._state = grown(memory._state, names)
    memory._grow(names)
    warn(
        f"Grown since {type(memory).__name__} consolidated: {said}. The old part, which is the "
        "beginning, is held as before; what was added is free."
    )
    return True


def has_grown(p: Tensor, star: Tensor) -> bool:
    """Whether `p` is `star` with more rows or columns after it, trained a little perhaps."""
    shape = shape_of(p)
    if shape is None or len(shape) != star.ndim or shape == star.shape:
        return False
    if any(now < before for now, before in zip(shape, star.shape, strict=True)):
        return False
    return Distance.of(_beginning(p, star.shape), star).relative <= NEAR


def grown(state: State, names: Mapping[str, nn.Parameter]) -> State:
    """The same for parameters, given by `names`, that have grown."""

    def padded(tensors: Mapping[str, Tensor], *, zero: bool) -> dict[str, Tensor]:
        return {n: _padded(t, names[n], zero) if n in names else t for n, t in tensors.items()}

    terms = tuple(
        replace(t, importance=padded(t.importance, zero=True), anchor=padded(t.anchor, zero=False))
        for t in state.terms
    )
    running = state.running
    if running is not None:
        running = running.with_sums(padded(running.sums, zero=True))
    return replace(state, terms=terms, running=running)


def padded_start(start: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where weights were, for parameters that have grown: the new part is where it is."""
    return {n: _padded(t, names[n], False) if n in names else t for n, t in start.items()}


def _padded(old: Tensor, p: Tensor, zero: bool) -> Tensor:
    if old.shape == p.shape:
        return old
    new = torch.zeros(p.shape, dtype=old.dtype, device=old.device)
    if not zero:
        new.copy_(p.detach())
    _beginning(new, old.shape).copy_(old)
    return new


def _beginning(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor.detach()[tuple(slice(0, size) for size in shape)]
