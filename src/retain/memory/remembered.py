"""What a memory remembers: Ω and θ*, of which weights, and by which settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from retain import arguments
from retain.errors import ModelError, StateError
from retain.importance import Importance
from retain.memory.attachment import Attachment, Follower, Held
from retain.memory.consolidated import Consolidated, holds, sharded
from retain.memory.estimator import Made
from retain.memory.growth import hold_grown
from retain.memory.guard import Guard
from retain.memory.state import State, Tensors
from retain.memory.storage import Storage, folder_of
from retain.parameters import Patterns, Selection, unwrapped
from retain.penalty import PenaltyChunks
from retain.samples.outputs import OutputPicker
from retain.samples.reader import Reader
from retain.saying import warn


class Found:
    """What is held, as it was looked up.

    Attributes:
        places: where all of it was in the model, by the guard's account.
        held: what holds which parameter.
        chunks: which parameters go together in `penalty()`: of those that a rank has all of, and
            of those that it has a shard of.
    """

    def __init__(self, places: object, held: Held) -> None:
        self.places, self.held = places, held
        self.chunks = PenaltyChunks(), PenaltyChunks()
        self._shapes = self._shapes_now()

    @property
    def is_as_large(self) -> bool:
        """Whether no parameter was given another size since."""
        return self._shapes == self._shapes_now()

    def _shapes_now(self) -> list[torch.Size]:
        return [p.shape for p, _holds in self.held.values()]


class Remembered:
    """What the parts of a memory share: its settings, Ω and θ*, and what the four differ in."""

    shared: ClassVar[bool] = True  # whether ranks observe each their own share
    forms: ClassVar[tuple[str, ...]] = ("gradient", "proximal", "adaptive")
    coefficient: ClassVar[float] = 1.0  # of λ Σ Ω (θ − θ*)²
    output: OutputPicker | None = None

    selective: ClassVar[bool] = False  # whether some parameters get no importance by its rule
    signed: ClassVar[bool] = False  # whether what is summed can be negative
    _arguments: ClassVar[Mapping[str, str]] = {}  # of the constructor, plain -> attribute
    _further: ClassVar[tuple[str, ...]] = ()  # attributes that `_take_more` sets

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
    ) -> None:
        self.model = unwrapped(model)
        self.strength = strength
        self.selection = Selection.of(include, exclude)
        self.selection.trainable(self.model)
        self.storage = Storage(
            arguments.floating("dtype", dtype),
            arguments.place("device", device),
            folder_of(offload),
        )
        self._reader = Reader()
        self._state = State()
        self._routes: dict[str, str] = {}
        self._made: Made | None = None
        self._known: Found | None = None
        self._watch()
        self._warned = False
        self._warned_twice = False
        self._zeros: set[str] = set()  # parameters that a warning has named
        self._in_losses = 0  # how often the gradient of `penalty()` was asked for
        self._output_is_lost = False

    @property
    def strength(self) -> float:
        """λ, how hard the weights are held; may be set at any time.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> memory.strength = 10.0  # hold ten times harder from now on
            >>> memory.strength
            10.0
        """
        return self._strength

    @strength.setter
    def strength(self, given: float) -> None:
        self._strength = arguments.number("strength", given, least=0)

    @property
    def include(self) -> tuple[str, ...] | None:
        """Names or patterns of the parameters to protect; None for all.

        Examples:
            >>> retain.MAS(model, include="0.*").include
            ('0.*',)
        """
        return self.selection.include

    @property
    def exclude(self) -> tuple[str, ...]:
        """Names or patterns of parameters to leave free; may be set at any time.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> memory.exclude = ["2.*"]  # a head that is replaced
            >>> memory.exclude
            ('2.*',)
        """
        return self.selection.exclude

    @exclude.setter
    def exclude(self, given: Patterns) -> None:
        self.selection = Selection.of(self.include, given)

    @property
    def tasks(self) -> int:
        """How often it was consolidated.

        Examples:
            >>> retain.MAS(model).observe(loader).consolidate().tasks
            1
        """
        return self._state.tasks

    @property
    def importance(self) -> Importance:
        """The consolidated Ω, over all tasks; empty before the first `consolidate()`.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> memory.importance
            Importance(4 parameters, 75 weights, 32 samples)
            >>> memory.importance["0.weight"].shape
            torch.Size([8, 5])
        """
        terms = [
            Importance(
                term.omegas(),
                term.samples,
                squared_norm=term.squared_norm,
                precisions=term.precisions,
            )
            for term in self._state.terms
        ]
        nothing = Importance({}, 0, squared_norm=0.0)
        total = sum(terms[1:], start=terms[0]) if terms else nothing
        total.samples, total.routes = self._state.samples, dict(self._routes)
        return total

    @property
    def terms(self) -> tuple[Consolidated, ...]:
        """What was consolidated: one Ω and θ*, or for EWC one of each task.

        Examples:
            >>> memory = retain.EWC(model)
            >>> for task in (new_data, new_data):
            ...     _ = memory.observe(task).consolidate()
            >>> [term.samples for term in memory.terms]
            [32, 32]
        """
        return self._state.terms

    @property
    def anchor(self) -> dict[str, Tensor]:
        """θ* by name, where the weights are held; of EWC, which keeps one per task, the latest.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> torch.equal(memory.anchor["0.weight"], model[0].weight)  # nothing has moved
            True
        """
        return {name: star for term in self._state.terms for name, star in term.anchor.items()}

    # ---- what the four differ in ----

    def _more_tensors(self) -> Tensors:
        """What else is remembered, kind -> name of the parameter -> tensor."""
        return {}

    def _take_more(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take back `_more_tensors`."""

    def _grow(self, names: Mapping[str, nn.Parameter]) -> None:
        """What else is remembered of parameters, when these have grown."""

    def _follower(self) -> Follower | None:
        return None

    def _held_in_step(self) -> Held:
        return self._found().held

    def _version(self) -> tuple[object, ...]:
        """What `_held_in_step` goes by, asked before every step."""
        self._refuse_unconsolidated()
        return self._state.terms, self.selection

    # ---- inside ----

    def _watch(self) -> None:
        """Begin with no attachment, and with an eye on the weights from where they are now."""
        # Weakly: an optimizer that is done with is not kept for the sake of its handle.
        self._attachments: WeakSet[Attachment] = WeakSet()
        self._guard = Guard(self)
        if self._state.terms:
            self._guard.anchored()

    def _remember(
        self,
        state: State,
        tensors: Mapping[str, Mapping[str, Tensor]],
        output: OutputPicker | None,
        *,
        custom_output: bool,
    ) -> None:
        """Take over what a file or a state held."""
        devices = {name: p.device for name, p in self.selection.matching(self.model).items()}
        self._state = state.placed(devices, self.storage.place)
        self._take_more(tensors)
        self._guard.loaded()
        self.output = output
        self._output_is_lost = custom_output and output is None

    def _weight(self) -> float:
        return self.coefficient * self.strength

    def _found(self) -> Found:
        """What is held, looked up anew only where something was replaced or has another size."""
        self._refuse_unconsolidated()
        if not self._state.terms and not self._warned:
            self._warned = True
            warn(
                f"Nothing is protected yet: {type(self).__name__} has no importance before "
                "consolidate(), and the penalty is 0."
            )
        places, known = self._guard.places, self._known
        if known is None or known.places is not places or not known.is_as_large:
            known = self._known = Found(places, self._holding())
        return known

    def _forget_what_was_held(self) -> None:
        """Keep no Ω and no θ* alive that others have replaced."""
        self._known = None
        for attachment in self._attachments:
            attachment.forget()

    def _holding(self) -> Held:
        """What is held, also of what has grown."""
        self._shard()
        try:
            return holds(self.model, self.selection, self._state.terms)
        except ModelError:
            if not hold_grown(self):
                raise
            return holds(self.model, self.selection, self._state.terms)

    def _shard(self) -> None:
        """Let Ω and θ* be sharded over the ranks as the parameters are by now."""
        terms = sharded(self._state.terms, self.selection.matching(self.model))
        if terms is not self._state.terms:
            self._state = replace(self._state, terms=self.storage.put(terms))

    def _refuse_unconsolidated(self) -> None:
        running = self._state.running
        if running and running.samples:
            raise StateError(
                f"{running.samples} samples were observed and never consolidated. Call "
                "consolidate() once the model has learned what you want to keep."
            )
