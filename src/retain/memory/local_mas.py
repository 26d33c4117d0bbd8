"""Memory Aware Synapses, locally: Ω from what each layer does, by forward passes alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from retain.errors import InputError
from retain.importance import Importance
from retain.local_rule.rule import LocalRule
from retain.local_rule.serving import CallObserver, Turns
from retain.memory.batch_settings import READING, ReadsBatches
from retain.memory.body import Memory
from retain.memory.consolidated import Merge
from retain.memory.running_sums import Running
from retain.parameters import Patterns
from retain.samples.owners import PaddingMask, SamplesOf
from retain.samples.reader import Reader


class LocalMAS(ReadsBatches, Memory):
    """l-MAS (Aljundi et al., ECCV 2018): MAS with each layer's own output, by forward passes alone.

    Ω = 1/N Σₖ |∂‖y_l(xₖ)‖² / ∂θ| with y_l the layer's output after its non-linearity and its input
    held constant; after ReLU that is 2 · y_i · y_j, Hebb's rule. Linear and convolutional layers
    have one; other parameters, and heads, get no importance and stay free. The penalty is
    λ Σ Ω (θ − θ*)².

    Args:
        model: the network; nothing is put on it.
        strength: λ, without ½.
        include: names or patterns of the parameters to protect; all by default.
        exclude: names or patterns of parameters to leave free.
        dtype: in which Ω and θ* are kept; by default Ω in single precision, θ* as the weights are.
        device: where Ω and θ* are kept; by default with the weights.
        offload: a folder on a fast disk, where Ω and θ* are kept and read at each step.
        batch_dim: the dimension of the inputs that counts samples.
        samples_of: which sample each row belongs to, where rows are no samples (patches, boxes,
            nodes of graphs): the name of an input that numbers them, or a function of the batch.
        padding_mask: positions that do not count, where no attention_mask says so: the name of an
            input, or a function of the batch, that gives bools [n, T], True at padding.

    Examples:
        >>> import torch, retain
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
        ... )
        >>> memory = retain.LocalMAS(model, exclude="2")
        >>> with memory.observing(), torch.inference_mode():
        ...     answer = model(torch.randn(5, 4))
        >>> memory.consolidate().importance.samples
        5
    """

    selective: ClassVar[bool] = True
    _arguments: ClassVar[Mapping[str, str]] = READING

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
        batch_dim: int = 0,
        samples_of: SamplesOf = None,
        padding_mask: PaddingMask = None,
    ) -> None:
        self._inbox = Inbox()
        self._turns = Turns()
        self._rule: LocalRule | None = None
        self._listener: CallObserver | None = None
        super().__init__(
            model,
            strength=strength,
            include=include,
            exclude=exclude,
            dtype=dtype,
            device=device,
            offload=offload,
        )
        self._reader = Reader(batch_dim=batch_dim, samples_of=samples_of, padding_mask=padding_mask)
        self._served = model

    @contextmanager
    def observing(self, *, every: int = 1) -> Iterator[Self]:
        """Observe the user's own calls of the model while they serve: `with memory.observing(): …`.

        The model answers as ever, in its own mode, also under `torch.no_grad()` and
        `torch.inference_mode()`. One call in `every` is observed, the first and every k-th after
        it, counted over all threads and over all blocks, of which any number may be open, in any
        threads, and left in any order; the other calls cost nothing. A call is observed that begins
        and ends while a block is open, in whatever thread. Copies and pickles of the model are not
        observed. What goes wrong in observing never reaches who is served; it is warned of when
        the last block is left.

        Raises:
            InputError: `every` is not a positive whole number; or rows are no samples
                (`samples_of`), or padding is known to a function only: a call shows its arguments
                alone.
            StateError: another block is open with another `every`.
            ModelError: the model changed since the first sample; call `consolidate()` before that.

        Examples:
            >>> memory = retain.LocalMAS(model)
            >>> with memory.observing(every=2):
            ...     answers = [model(x) for _ in range(4)]
            >>> memory.observed.samples  # of two calls with eight each
            16
        """
        with self._quiet():
            listener = self._listener_for_all()
            listener.enter(every)
        try:
            yield self
        finally:
            listener.leave()

    def _listener_for_all(self) -> CallObserver:
        """The one listener of this memory: all blocks that are open at a time share it."""
        padding = self.padding_mask
        if self.samples_of is not None or not (padding is None or isinstance(padding, str)):
            given = "padding_mask" if self.samples_of is None else "samples_of"
            raise InputError(
                f"While serving, only the model's arguments are seen, and {given} cannot be "
                "applied to them. Use observe(data), or a padding_mask that is the name of an "
                "input."
            )
        parameters = self.selection.trainable(self.model)
        if self._state.running is None:
            self._state = replace(self._state, running=Running())
        self._sets_out(cast(Running, self._state.running), parameters)
        if self._listener is None or not self._listener.open:
            rule = cast(LocalRule, self._estimator(parameters))
            if (
                self._listener is None
                or self._rule is not rule
                or self._listener.padding_mask != padding
            ):
                commit = partial(self._inbox.put, rule.routes)
                self._listener = rule.listener(commit, self._turns, padding_mask=padding)
                self._rule = rule
        return self._listener

    # ---- beside calls that are observed in other threads ----

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """One verb at a time, with all that other threads have observed so far."""
        with self._inbox.verbs:
            arrived = self._inbox.take()
            if arrived is not None:
                running = self._state.running or Running()
                running.add(arrived.sums, arrived.samples)
                running.routes = arrived.routes
                self._state = replace(self._state, running=running)
            yield

    @override
    def observe(self, data: Any, *, max_samples: int | None = None, progress: bool = True) -> Self:
        with self._quiet():
            return super().observe(data, max_samples=max_samples, progress=progress)

    @property
    @override
    def observed(self) -> Importance:
        """What was observed since the last `consolidate()`; see `Memory.observed`.

        Examples:
            >>> retain.LocalMAS(model).observe(loader).observed["0.weight"].shape
            torch.Size([8, 5])
        """
        with self._quiet():
            return super().observed

    @observed.setter
    def observed(self, given: Importance) -> None:
        with self._quiet():
            cast(property, Memory.observed).__set__(self, given)

    @override
    def consolidate(self, merge: Merge = "sum") -> Self:
        with self._quiet():
            super().consolidate(merge)
            if self._listener is not None and not self._listener.open:
                self._listener = self._rule = None  # their buffers are as large as the weights
            return self

    @override
    def save(self, path: str | os.PathLike[str]) -> None:
        with self._quiet():
            super().save(path)

    @override
    def state_dict(self) -> dict[str, Any]:
        with self._quiet():
            return super().state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        with self._quiet():
            super().load_state_dict(state, strict=strict)

    @override
    def __getstate__(self) -> dict[str, Any]:
        with self._quiet():
            return {**super().__getstate__(), "_listener": None, "_rule": None}

    @override
    def _refuse_unconsolidated(self) -> None:
        with self._quiet():
            super()._refuse_unconsolidated()

    def _make_estimator(self, parameters: Mapping[str, nn.Parameter]) -> LocalRule:
        return LocalRule(self.model, parameters, batch_dim=self._batch_dim, served=self._served)


class Inbox:
    """What calls that are observed in any thread have added, until the memory takes it in.

    Attributes:
        verbs: held by the thread that reads or changes the memory, never by one that serves.
    """

    def __init__(self) -> None:
        self.verbs = threading.RLock()
        self._lock = threading.Lock()
        self._arrived: Running | None = None

    def put(self, routes: Mapping[str, str], sums: Mapping[str, Tensor], samples: int) -> None:
        """Add the sums over `samples` more samples."""
        with self._lock:
            if self._arrived is None:
                self._arrived = Running()
            self._arrived.add(sums, samples)
            self._arrived.routes = dict(routes)

    def take(self) -> Running | None:
        """Everything since the last time, if there is anything."""
        with self._lock:
            arrived, self._arrived = self._arrived, None
            return arrived

    def __reduce__(self) -> tuple[type[Inbox], tuple[()]]:
        return Inbox, ()  # a copy of a memory has its own; locks are of one process
