"""Two memories that are the same: a copy, one that was loaded, one of lines that were run twice."""

from __future__ import annotations

from retain.memory.holder import Holder
from retain.memory.movement import alike
from retain.memory.places import places_in


def holds_the_same(memory: Holder, other: Holder) -> bool:
    """Whether both hold the same parameters, near the same θ*, by the same Ω.

    A few elements of each tensor are compared. Memories of two tasks differ in them.
    """
    if type(memory) is not type(other) or len(memory.terms) != len(other.terms):
        return False
    mine, theirs = (
        {name: place.parameter for name, place in places_in(one).items()} for one in (memory, other)
    )
    if not mine or {n: id(p) for n, p in mine.items()} != {n: id(p) for n, p in theirs.items()}:
        return False
    return all(
        alike(a.importance[name], b.importance[name]) and alike(a.anchor[name], b.anchor[name])
        for a, b in zip(memory.terms, other.terms, strict=True)
        for name in mine
        if name in a.importance and name in b.importance
        if a.importance[name].shape == b.importance[name].shape
    )
