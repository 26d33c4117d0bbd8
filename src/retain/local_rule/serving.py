"""Observing a model while it serves: its own calls, in its own mode, one in `every`."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retain.batches import Batch
from retain.borrowed import borrowed, eagerly
from retain.errors import InputError
from retain.local_rule.forward_passes import Passes

Commit = Callable[[dict[str, Tensor], int], None]
Forward = Callable[..., Any]

PLAIN = (torch.Tensor, type(None), bool, int, float, str, torch.dtype, torch.device)


class Listener:
    """Stands in for a model's `forward` for a while; returns what it returns."""

    def __init__(
        self, model: nn.Module, passes: Passes, commit: Commit, *, every: int, batch_dim: int
    ) -> None:
        self.model = model
        self.passes = passes
        self.commit = commit
        self.every = every
        self.batch_dim = batch_dim
        self._to_skip = 0
        self._called = False
        self._busy = threading.Lock()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Listen to the model's calls; what it was called by is back afterwards, whatever happens.

        That is its `forward`, or, after `model.compile()`, the compiled call.
        """
        compiled = getattr(self.model, "_compiled_call_impl", None) is not None
        name = "_compiled_call_impl" if compiled else "forward"
        served, own = getattr(self.model, name), name in vars(self.model)
        setattr(self.model, name, self._around(served))
        try:
            yield
        finally:
            if own:
                setattr(self.model, name, served)
            else:
                delattr(self.model, name)
        if not self._called:
            _warn("the model was not called. If it is called compiled, give the compiled model")

    def _around(self, served: Forward) -> Forward:
        @functools.wraps(served)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():  # from outside: it must not see what happens here
                return served(*args, **kwargs)
            self._called = True
            return self._observe(served, args, kwargs) if self._due() else served(*args, **kwargs)

        return forward

    def _due(self) -> bool:
        """Whether the call that begins now is to be observed; if so, no other is until it ends."""
        if self._to_skip:
            self._to_skip -= 1
            return False
        # False if another thread is being observed, or a call in which the model calls itself
        return self._busy.acquire(blocking=False)

    def _observe(self, served: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the model returns; nothing that goes wrong in observing reaches who is served."""
        try:
            batch = self._batch(args, kwargs)
            if batch is None:
                return served(*args, **kwargs)
            looked = bool(self.passes.unknown)
            if looked:
                self._look(batch)
            with eagerly():
                returned = self.passes.run(batch.samples, served, *args, trusting=True, **kwargs)
            if looked:
                self.passes.give_up()
            self._hand_over(self.passes.result(), batch.samples)
            return returned
        finally:
            self._busy.release()

    def _batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch | None:
        try:
            return Batch.of_call(args, kwargs, batch_dim=self.batch_dim)
        except InputError as error:
            _warn(str(error).rstrip("."))
            return None

    def _look(self, batch: Batch) -> None:
        if not _only_data((batch.args, batch.kwargs)):
            return  # a cache, for one, must not see calls that nobody made
        try:
            with borrowed(self.model), torch.no_grad():
                self.passes.look(self.model, batch)
        except Exception as error:
            _warn(f"samples could not be run alone: {error}")

    def _hand_over(self, sums: dict[str, Tensor] | None, samples: int) -> None:
        if sums is None:
            return  # something was met for the first time; the next call is observed instead
        self._to_skip = self.every - 1
        if not sums:
            _warn("no layer of this call has a local rule")
        elif broken := self.passes.not_finite():
            _warn(f"NaN or infinity in the inputs or outputs of the layers of {broken}")
        else:
            with torch.inference_mode(False):
                self.commit(sums, samples)


def _warn(why: str) -> None:
    warnings.warn(f"Not observed while serving: {why}.", stacklevel=5)


def _only_data(value: object) -> bool:
    """Whether a second call with the same arguments cannot change them."""
    if isinstance(value, Mapping):
        return all(map(_only_data, value.values()))
    if isinstance(value, (tuple, list)):
        return all(map(_only_data, value))
    return isinstance(value, PLAIN)
