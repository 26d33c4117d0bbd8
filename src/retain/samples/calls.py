"""How a model is called with an input: as its forward's signature allows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from retain.errors import InputError
from retain.samples.batches import LABEL_KEYS, Batch
from retain.samples.containers import parts_of
from retain.samples.packing import rows_of
from retain.samples.rows import Rows


@dataclass(frozen=True)
class Call:
    """One way to call a model with what a batch holds."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None

    def batch(self, batch_dim: int, model: nn.Module, rows: Rows | None = None) -> Batch:
        """The batch, with as many samples as its first tensor says, or as there are in `rows`."""
        names = _names(model, len(self.args))
        if rows is not None:
            return Batch(self.args, self.kwargs, rows.samples, self.labels, batch_dim, names)
        batch = Batch.of_call(self.args, self.kwargs, batch_dim=batch_dim)
        return replace(batch, labels=self.labels, names=names)

    def named(self, model: nn.Module) -> dict[str, Tensor]:
        """Every tensor in it by its name."""
        batch = Batch(self.args, self.kwargs, 0, names=_names(model, len(self.args)))
        return {str(path[-1]): tensor for path, tensor in batch.inputs().items()}


def served_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any], model: nn.Module, *, batch_dim: int = 0
) -> Batch:
    """The batch that a user calls a model with.

    Raises:
        InputError: there is nothing that counts samples, or rows are no samples.
    """
    call = Call(args, kwargs, None)
    rows = rows_of(call.named(model)) if batch_dim == 0 else None
    if rows is not None and rows.samples > 1:
        raise InputError(
            f"{rows.what} are no samples of their own in a call that serves: give such batches to "
            "observe(…)"
        )
    return call.batch(batch_dim, model)


def calls(
    given: Any, labels: Tensor | None, model: nn.Module, extra: frozenset[str]
) -> Iterator[Call]:
    """The ways in which a model may be called with an input; the usual one first.

    Named parts are keyword arguments, unless the model takes them whole. Labels are left out, and
    so are inputs in `extra` that the model does not ask for.
    """
    if isinstance(given, Tensor):
        yield Call((given,), {}, labels)
        return
    if isinstance(given, (tuple, list)):
        if any(isinstance(item, Tensor) for item in given):
            if _takes(model, tuple(given), {}):
                yield Call(tuple(given), {}, labels)
            yield Call((given,), {}, labels)
        return
    parts = parts_of(given)
    if parts is None:
        return
    kwargs = {k: v for k, v in parts.items() if k not in LABEL_KEYS}
    if labels is None:
        beside = (item for key, item in parts.items() if key in LABEL_KEYS)
        labels = next((item for item in beside if isinstance(item, Tensor)), None)
    for name in extra & kwargs.keys():
        if not _takes(model, (), kwargs) or not asks_for(model, name):
            kwargs = {k: v for k, v in kwargs.items() if k != name}
    whole = kwargs if isinstance(given, dict) else given
    if _takes(model, (), kwargs) or not _takes(model, (whole,), {}):
        yield Call((), kwargs, labels)
    else:
        yield Call((whole,), {}, labels)
        asked = {name: part for name, part in kwargs.items() if asks_for(model, name)}
        if asked and _takes(model, (), asked):  # beside what only a loss or a metric looks at
            yield Call((), asked, labels)


def _takes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the model's forward can be called so, as far as its signature says."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def asks_for(model: nn.Module, name: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters


def _names(model: nn.Module, count: int) -> tuple[str, ...]:
    """The names of the first positional arguments of the model's forward."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in plain)[:count]
