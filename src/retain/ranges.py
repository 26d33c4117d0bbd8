"""Which values an option may have, as the field that describes it says: its type, and the range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """The finite numbers within bounds: from `least` to `most`, above `above`, below `below`."""

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    most: float = math.inf

    def holds(self, number: float) -> bool:
        """Whether the number is one of them."""
        try:
            finite = math.isfinite(number)
        except OverflowError:  # a whole number that no float is as large as
            finite = False
        return finite and self.least <= number <= self.most and self.above < number < self.below

    def __str__(self) -> str:
        sides = (">", self.above), ("≥", self.least), ("<", self.below), ("≤", self.most)
        return " and ".join(f"{sign} {bound:.10g}" for sign, bound in sides if math.isfinite(bound))


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, below=1)]
UpToOne = Annotated[float, Range(least=0, most=1)]
Count = Annotated[int, Range(least=0)]
Size = Annotated[int, Range(least=1)]


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of the type, and in the range, that a field says."""
    inside = get_args(kind)
    if get_origin(kind) is Annotated:
        bare, within = inside
        return fits(value, bare) and bool(within.holds(value))
    if get_origin(kind) is Literal:
        return value in inside
    if get_origin(kind) in (Union, UnionType):
        return any(fits(value, one) for one in inside)
    if get_origin(kind) is tuple:  # tuple[T, ...]
        return isinstance(value, (tuple, list)) and all(fits(one, inside[0]) for one in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def described(kind: Any) -> str:
    """A type as one would say it: a word, or the values that there are."""
    inside = get_args(kind)
    if get_origin(kind) is Annotated:
        return f"{described(inside[0])} {inside[1]}"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, inside))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(described(one) for one in inside)
    if get_origin(kind) is tuple:
        return f"several of {described(inside[0])}"
    return "None" if kind is type(None) else str(getattr(kind, "__name__", kind))
