"""Where a model has its held parameters, so that one that is replaced is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import is_
from typing import NamedTuple

from torch import nn

from retain.memory.holder import Holder


class Place(NamedTuple):
    """A held parameter, and the way to it: parent, attribute, child, from the model down."""

    name: str
    parameter: nn.Parameter
    way: tuple[tuple[nn.Module, str, object], ...]


class StillThere:
    """Whether a model still has these very parameters in their places; asked at every step."""

    def __init__(self, places: Iterable[Place]) -> None:
        steps = {
            (id(parent), name): (parent, name, child)
            for one in places
            for parent, name, child in one.way
        }
        self._children = [child for _parent, _name, child in steps.values()]
        self._looks = [_look(parent, name, child) for parent, name, child in steps.values()]

    @property
    def is_whole(self) -> bool:
        """Whether every one of them is there."""
        return all(map(is_, [look() for look in self._looks], self._children))


def _look(parent: nn.Module, name: str, child: object) -> Callable[[], object]:
    """What is under a name in a module, asked where a module keeps it and not by way of it."""
    inside: object = parent._parameters if isinstance(child, nn.Parameter) else parent._modules
    return (
        partial(inside.get, name) if type(inside) is dict else partial(getattr, parent, name, None)
    )


def places_in(memory: Holder) -> dict[str, Place]:
    """The place of every parameter with importance that the model has, by canonical name."""
    held = {name for term in memory._state.terms for name in term.importance}
    ways = dict(_ways(memory.model, (), set()))
    picked = memory.selection.matching(memory.model)
    return {name: Place(name, p, ways[id(p)]) for name, p in picked.items() if name in held}


def _ways(
    module: nn.Module, way: tuple[tuple[nn.Module, str, object], ...], seen: set[int]
) -> Iterator[tuple[int, tuple[tuple[nn.Module, str, object], ...]]]:
    """By the id of each parameter the first way to it."""
    seen.add(id(module))
    for attribute, p in module.named_parameters(recurse=False):
        if id(p) not in seen:
            seen.add(id(p))
            yield id(p), (*way, (module, attribute, p))
    for name, child in module.named_children():
        if id(child) not in seen:
            yield from _ways(child, (*way, (module, name, child)), seen)
