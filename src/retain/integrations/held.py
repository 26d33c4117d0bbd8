"""What a trainer's callback asks of a memory: the same of LoRA's penalty as of any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from retain import arguments
from retain.memory import load
from retain.memory.body import Memory
from retain.saying import warn


@runtime_checkable
class MemoryLike(Protocol):
    """A memory, or a `LoraPenalty`."""

    model: nn.Module
    _in_losses: int

    def penalty(self) -> Tensor:
        """λ Σ Ω (θ − θ*)²."""

    def attach(self, optimizer: Any, *, form: str = "gradient") -> Any:
        """A handle with `remove()`."""

    def save(self, path: Path) -> None:
        """Write it to a file."""


def refuse_other(given: object, form: object) -> None:
    """Nothing, if it is a memory or a `LoraPenalty`, and knows a form of that name.

    Raises:
        InputError: something else.
    """
    expected = "retain.MAS(model) or another memory, or a LoraPenalty"
    holder: Any = arguments.instance("memory", given, MemoryLike, expected)
    arguments.among("form", form, getattr(holder, "memory", holder).forms)


def refuse_unready(holder: MemoryLike) -> None:
    """Nothing, if steps can be protected; one warning if nothing is protected yet.

    Raises:
        StateError: something was observed but never consolidated.
        ModelError: the model does not fit its importance.
    """
    with torch.no_grad():
        holder.penalty()


def relative_drift(holder: Any) -> float:
    """The expected change of the output, as a share; 0 before anything was consolidated."""
    memory = holder if isinstance(holder, Memory) else holder.memory
    return float(holder.drift().relative) if memory.tasks else 0.0


def is_beyond(drift: float, limit: float | None) -> bool:
    """Whether training is to end, since the drift is beyond the limit; says so if it is."""
    if limit is None or drift <= limit:
        return False
    warn(
        f"Training ends here: the drift is {100 * drift:.3g} %, beyond the limit of "
        f"{100 * limit:.3g} % (stop_when_drift_exceeds). The weights are as the last step left "
        "them."
    )
    return True


def take_up(holder: Any, path: Path) -> None:
    """Let the holder be what `save` wrote to `path`.

    Raises:
        FileError: it is damaged, or does not match the model.
    """
    if isinstance(holder, Memory):
        holder.load_state_dict(load(path, holder.model, output=holder.output).state_dict())
    else:
        holder.load(path)
