"""What a trainer's callback asks of a memory: the same of LoRA's penalty as of any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from retain.memory import load
from retain.memory.body import Memory
from retain.parameters import named_parameters


class Holder(Protocol):
    """A memory, or a `LoraPenalty`."""

    model: nn.Module
    _in_losses: int

    def penalty(self) -> Tensor:
        """λ Σ Ω (θ − θ*)²."""

    def attach(self, optimizer: Any, *, form: str = "gradient") -> Any:
        """A handle with `remove()`."""

    def save(self, path: Path) -> None:
        """Write it to a file."""


def refuse_unready(holder: Holder) -> None:
    """Nothing, if steps can be protected; one warning if nothing is protected yet.

    Raises:
        StateError: something was observed but never consolidated.
        ModelError: the model does not fit its importance.
    """
    with torch.no_grad():
        holder.penalty()


@torch.no_grad()
def drift(holder: Any) -> dict[str, float]:
    """Name → ‖θ − θ*‖₂, how far each protected weight is from where it is held."""
    if not isinstance(holder, Memory):
        found: dict[str, float] = holder.drift()
        return found
    now = named_parameters(holder.model)
    return {
        name: float((now[name] - star.to(now[name])).norm())
        for name, star in holder.anchor.items()
        if name in now and holder.selection.picks(name)
    }


def take_up(holder: Any, path: Path) -> None:
    """Let the holder be what `save` wrote to `path`.

    Raises:
        FileError: it is damaged, or does not match the model.
    """
    if isinstance(holder, Memory):
        holder.load_state_dict(load(path, holder.model, output=holder.output).state_dict())
    else:
        holder.load(path)
