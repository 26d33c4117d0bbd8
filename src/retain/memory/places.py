"""Where a model has its held parameters, so that one that is replaced is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from retain.memory.holder import Holder


class Place(NamedTuple):
    """A held parameter, and the way to it: parent, attribute, child, from the model down."""

    name: str
    parameter: nn.Parameter
    way: tuple[tuple[nn.Module, str, object], ...]

    @property
    def is_taken(self) -> bool:
        """Whether the model still has this very parameter there."""
        return all(getattr(parent, name, None) is child for parent, name, child in self.way)


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
