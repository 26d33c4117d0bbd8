"""Nested batches: mappings, lists, dataclasses and other objects, gone through leaf by leaf."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Path = tuple[str | int, ...]
DESCEND = NotImplemented  # what a change returns for a value that is to be looked into
PLAIN = (str, bytes, int, float, bool, complex, type(None), type, nn.Module, PackedSequence)
WHOLE = (Tensor, *PLAIN)


def rebuilt(value: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """`value` with what `change(path, part)` gives in place of its parts; `value` is untouched.

    `change` is asked about every part, containers before what is in them; where it returns
    `DESCEND`, a container is looked into and anything else stays. Containers keep their kind.
    """
    changed = change(path, value)
    if changed is not DESCEND:
        return changed
    if isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence):
        items = [rebuilt(item, change, (*path, at)) for at, item in enumerate(value)]
        if all(new is old for new, old in zip(items, value)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    parts = parts_of(value, deep=len(path) > 1)
    if parts is None:
        return value
    new = {key: rebuilt(part, change, (*path, key)) for key, part in parts.items()}
    different = {key: part for key, part in new.items() if part is not parts[key]}
    return _with(value, different, new) if different else value


def parts_of(value: Any, *, deep: bool = False) -> dict[Any, Any] | None:
    """The named parts of a mapping, a dataclass, or another object that holds tensors.

    `deep` inside a batch only mappings and dataclasses are looked into: an object there, such as a
    cache, is the model's own affair.
    """
    if type(value) is dict:
        return value.copy()
    if isinstance(value, WHOLE):
        return None
    if isinstance(value, Mapping):
        return dict(value.items())
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if deep or isinstance(value, (tuple, list)):
        return None
    if _is_keyed(value):
        return {key: value[key] for key in _keys(value)}
    held = getattr(value, "__dict__", {})
    return dict(held) if any(isinstance(part, Tensor) for part in held.values()) else None


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in `value` with the way to it, in their order."""
    found: list[tuple[Path, Tensor]] = []

    def see(where: Path, part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append((where, part))
            return part
        return DESCEND

    rebuilt(value, see, path)
    return iter(found)


def _is_keyed(value: Any) -> bool:
    """Whether it has keys and items without being a mapping, as a graph of PyTorch Geometric."""
    return callable(getattr(value, "keys", None)) and hasattr(value, "__getitem__")


def _keys(value: Any) -> list[Any]:
    return list(value.keys())


def _with(value: Any, different: dict[Any, Any], every: dict[Any, Any]) -> Any:
    """A copy of `value` with some parts replaced."""
    new = copy.copy(value)
    if isinstance(value, Mapping) or (not is_dataclass(value) and _is_keyed(value)):
        if not hasattr(new, "__setitem__"):
            return every
        for key, part in different.items():
            new[key] = part
        return new
    for key, part in different.items():
        object.__setattr__(new, key, part)  # frozen dataclasses, too
    return new
