"""How a model is called with an input: as its forward's signature allows."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from retain.errors import InputError
from retain.samples import masks
from retain.samples.batches import LABEL_KEYS, Batch, tensors_in
from retain.samples.containers import parts_of
from retain.samples.packing import rows_of


@dataclass(frozen=True)
class ModelCall:
    """One way to call a model with what a batch holds."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None

    def parts(self, batch_dim: int, model: nn.Module) -> Batch:
        """What the model is given, before it is known how many samples that is."""
        names = _names(model, len(self.args))
        return Batch(self.args, self.kwargs, 0, self.labels, batch_dim, names)

    def batch(self, batch_dim: int, model: nn.Module) -> Batch:
        """The batch, with as many samples as its first tensor says."""
        return self.parts(batch_dim, model).counted()


def served_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any], model: nn.Module, *, batch_dim: int = 0
) -> Batch:
    """The batch that a user calls a model with.

    Raises:
        InputError: there is nothing that counts samples, or rows are no samples.
    """
    parts = ModelCall(args, kwargs, None).parts(batch_dim, model)
    rows = rows_of(parts.named()) if batch_dim == 0 else None
    if rows is not None and rows.samples > 1:
        raise InputError(
            f"{rows.what} are no samples of their own in a call that serves: give such batches to "
            "observe(…)"
        )
    return parts.counted() if rows is None else parts.described(samples=rows.samples)


def calls(
    given: Any, labels: Tensor | None, model: nn.Module, extra: frozenset[str] = frozenset()
) -> Iterator[ModelCall]:
    """The ways in which a model may be called with an input; the usual one first.

    Named parts are keyword arguments, unless the model takes them whole. Labels are left out, and
    so are inputs in `extra` that the model does not ask for.
    """
    if isinstance(given, Tensor):
        yield ModelCall((given,), {}, labels)
        return
    if isinstance(given, (tuple, list)):
        if any(isinstance(item, Tensor) for item in given):
            if _takes(model, tuple(given), {}):
                yield ModelCall(tuple(given), {}, labels)
            yield ModelCall((given,), {}, labels)
        return
    parts = parts_of(given)
    if parts is None:
        return
    kwargs = {k: v for k, v in parts.items() if k not in LABEL_KEYS}
    if labels is None:
        beside = (item for key, item in parts.items() if key in LABEL_KEYS)
        labels = next((item for item in beside if isinstance(item, Tensor)), None)
    if _decodes_labels(model, kwargs, labels):
        kwargs["labels"] = labels
    everything = kwargs
    for name in extra & kwargs.keys():
        if not _takes(model, (), kwargs) or not asks_for(model, name):
            kwargs = {k: v for k, v in kwargs.items() if k != name}
    if everything is not kwargs and _takes(model, (), everything):
        yield ModelCall((), everything, labels)  # its **kwargs may be where it looks for them
    if not _takes(model, (), kwargs):  # what tells samples apart for a reader, such as a name
        plain = {k: v for k, v in kwargs.items() if asks_for(model, k) or tensors_in(v)}
        kwargs = plain if _takes(model, (), plain) else kwargs
    whole = kwargs if isinstance(given, dict) else given
    if _takes(model, (), kwargs) or not _takes(model, (whole,), {}):
        yield ModelCall((), kwargs, labels)
    else:
        yield ModelCall((whole,), {}, labels)
        asked = {name: part for name, part in kwargs.items() if asks_for(model, name)}
        if asked and _takes(model, (), asked):  # beside what only a loss or a metric looks at
            yield ModelCall((), asked, labels)


def by_fields(raw: Any, model: nn.Module) -> Iterator[ModelCall]:
    """Ways to call a model with a named tuple: with the fields that it asks for, or with it whole.

    With the whole only where it cannot be called with the first field alone.
    """
    fields = raw._asdict()
    asked = {name: part for name, part in fields.items() if asks_for(model, name)}
    asked = {name: part for name, part in asked.items() if name not in LABEL_KEYS}
    beside = (part for name, part in fields.items() if name not in asked)
    labels = next((part for part in beside if isinstance(part, Tensor)), None)
    if asked and _takes(model, (), asked):
        yield ModelCall((), asked, labels)
    yield from calls(raw[0], next((p for p in raw[1:] if isinstance(p, Tensor)), None), model)
    yield ModelCall((raw,), {}, labels)


def side_by_side(raw: tuple[Any, ...] | list[Any], model: nn.Module) -> Iterator[ModelCall]:
    """Ways to call a model with the first few items of a batch, as one argument each.

    First with as many as it cannot do without, if these are more than one; then with others that
    its signature allows, and that are for a model which cannot be called with the first item alone.
    """
    if hasattr(raw, "_fields") or not all(isinstance(item, Tensor) for item in raw[:1]):
        return
    needed = _needed(model)
    counts = [count for count in range(2, len(raw) + 1) if count != needed]
    for count in [needed, *counts] if needed > 1 else counts:
        items = tuple(raw[:count])
        if len(items) == count and _takes(model, items, {}):
            beside = (item for item in raw[count:] if isinstance(item, Tensor))
            yield ModelCall(items, {}, next(beside, None))


def needs_several(model: nn.Module) -> bool:
    """Whether the model's forward cannot be called with one argument."""
    return _needed(model) > 1


def _decodes_labels(model: nn.Module, kwargs: dict[str, Any], labels: Tensor | None) -> bool:
    """Whether a decoder is to read the labels, shifted, as it does in training.

    So it is in encoder–decoders of transformers that are given labels and nothing else to decode.
    """
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False) or masks.has_decoder(kwargs):
        return False
    if labels is None or labels.ndim != 2 or labels.is_floating_point():
        return False
    return _takes(model, (), kwargs | {"labels": labels})


# ---- the signature of a forward ----

_signatures: weakref.WeakKeyDictionary[Any, inspect.Signature] = weakref.WeakKeyDictionary()


def _signature(model: nn.Module) -> inspect.Signature:
    """The signature of the model's forward, looked at once.

    Raises:
        TypeError: it has none.
        ValueError: it cannot be told.
    """
    forward = model.forward
    function = getattr(forward, "__func__", None)
    if function is None:  # an instance's own
        return inspect.signature(forward)
    if function not in _signatures:
        _signatures[function] = inspect.signature(forward)
    return _signatures[function]


def _takes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the model's forward can be called so, as far as its signature says."""
    try:
        _signature(model).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def asks_for(model: nn.Module, name: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    try:
        return name in _signature(model).parameters
    except (TypeError, ValueError):
        return False


def _needed(model: nn.Module) -> int:
    """How many positional arguments the model's forward cannot do without."""
    return sum(p.default is inspect.Parameter.empty for p in _positional(model))


def _names(model: nn.Module, count: int) -> tuple[str, ...]:
    """The names of the first positional arguments of the model's forward."""
    return tuple(p.name for p in _positional(model))[:count]


def _positional(model: nn.Module) -> list[inspect.Parameter]:
    try:
        parameters = _signature(model).parameters.values()
    except (TypeError, ValueError):
        return []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in parameters if p.kind in plain]
