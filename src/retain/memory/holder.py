"""What the parts of a memory know of the memory that they are parts of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from retain.importance import Importance
from retain.memory.consolidated import Consolidated
from retain.memory.state import State
from retain.memory.storage import Storage
from retain.parameters import Patterns, Selection
from retain.samples.outputs import OutputPicker


class Holder(Protocol):
    """A memory, whichever of the four, as what it consists of, below it, needs to see it."""

    model: nn.Module
    selection: Selection
    storage: Storage
    output: OutputPicker | None
    signed: ClassVar[bool]
    _state: State
    _routes: dict[str, str]
    _output_is_lost: bool
    _arguments: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 1.0,
        include: Patterns = None,
        exclude: Patterns = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        offload: str | os.PathLike[str] | None = None,
    ) -> None: ...

    @property
    def strength(self) -> float:
        """λ."""

    @strength.setter
    def strength(self, given: float) -> None: ...

    @property
    def include(self) -> tuple[str, ...] | None:
        """Names or patterns of the parameters to protect; None for all."""

    @property
    def exclude(self) -> tuple[str, ...]:
        """Names or patterns of parameters to leave free."""

    @property
    def tasks(self) -> int:
        """How often it was consolidated."""

    @property
    def importance(self) -> Importance:
        """The consolidated Ω, over all tasks."""

    @property
    def terms(self) -> tuple[Consolidated, ...]:
        """What was consolidated."""

    @property
    def anchor(self) -> dict[str, Tensor]:
        """θ* by name."""

    def _weight(self) -> float:
        """What Ω (θ − θ*)² is multiplied by."""

    def _grow(self, names: Mapping[str, nn.Parameter]) -> None:
        """What else is remembered of parameters, when these have grown."""

    def _forget_what_was_held(self) -> None:
        """Keep no Ω and no θ* alive that others have replaced."""

    def _remember(
        self,
        state: State,
        tensors: Mapping[str, Mapping[str, Tensor]],
        output: OutputPicker | None,
        *,
        custom_output: bool,
    ) -> None:
        """Take over what a file or a state held."""
