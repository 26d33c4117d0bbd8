"""Observing a model while it serves: its own calls, in its own mode, one in `every`."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from retain.batches import Batch
from retain.borrowed import borrowed
from retain.errors import InputError
from retain.estimators.local.passes import Passes, not_finite

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
        self._busy = threading.Lock()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Listen to the model's calls; its own `forward` is back afterwards, whatever happens."""
        served, own = self.model.forward, "forward" in vars(self.model)

        @functools.wraps(served)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._call(served, args, kwargs)

        self.model.forward = forward
        try:
            yield
        finally:
            if own:
                self.model.forward = served
            else:
                del self.model.forward

    def _call(self, served: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._to_skip:
            self._to_skip -= 1
            return served(*args, **kwargs)
        if not self._busy.acquire(blocking=False):  # another thread's turn, or the model's own call
            return served(*args, **kwargs)
        try:
            return self._observe(served, args, kwargs)
        finally:
            self._busy.release()

    def _observe(self, served: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the model returns; nothing that goes wrong in observing reaches who is served."""
        try:
            batch = Batch.of_call(args, kwargs, batch_dim=self.batch_dim)
        except InputError as error:
            _warn(str(error))
            return served(*args, **kwargs)
        looked = bool(self.passes.unknown)
        if looked:
            self._look(batch)
        with _eagerly():
            returned = self.passes.run(batch.samples, served, *args, trusting=True, **kwargs)
        if looked:
            self.passes.give_up()
        self._hand_over(self.passes.result(), batch.samples)
        return returned

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
        elif broken := not_finite(sums):
            _warn(f"NaN or infinity in the inputs or outputs of the layers of {broken}")
        else:
            with torch.inference_mode(False):
                self.commit(sums, samples)


def _warn(why: str) -> None:
    warnings.warn(f"A served batch was not observed: {why}.", stacklevel=5)


def _eagerly() -> AbstractContextManager[Any]:
    """Compiled code shows no layers; where nothing can have been compiled, nothing is loaded."""
    compiling = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


def _only_data(value: object) -> bool:
    """Whether a second call with the same arguments cannot change them."""
    if isinstance(value, Mapping):
        return all(map(_only_data, value.values()))
    if isinstance(value, (tuple, list)):
        return all(map(_only_data, value))
    return isinstance(value, PLAIN)
