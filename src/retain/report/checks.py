"""Take foreign JSON apart: each value as what it should be, and a list of what is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SHOWN = 20


class Checks:
    """Returns each value if it is as promised, a harmless one if not, and remembers the problem."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def problem(self, where: str, what: str) -> None:
        """Remember that `where` is not as promised."""
        self.problems.append(f"{where} {what}")

    def listed(self) -> str:
        """The problems, one a line, the first twenty of them."""
        more = len(self.problems) - SHOWN
        lines = self.problems[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
        return "".join(f"\n  - {line}" for line in lines)

    def mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        """An object with names."""
        if isinstance(value, Mapping):
            return value
        self.problem(where, f"should be an object, but {told(value)}")
        return {}

    def sequence(self, value: Any, where: str) -> list[Any]:
        """A list."""
        if isinstance(value, list | tuple):
            return list(value)
        self.problem(where, f"should be a list, but {told(value)}")
        return []

    def name(self, value: Any, where: str) -> str:
        """Text that is not empty."""
        if isinstance(value, str) and value:
            return value
        self.problem(where, f"should be a name, but {told(value)}")
        return ""

    def text(self, value: Any, where: str) -> str | None:
        """Text or null."""
        if value is None or isinstance(value, str):
            return value
        self.problem(where, f"should be text or null, but {told(value)}")
        return None

    def whole(self, value: Any, where: str) -> int:
        """A whole number that is not negative."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        self.problem(where, f"should be a whole number, 0 or more, but {told(value)}")
        return 0

    def number(self, value: Any, where: str) -> float | None:
        """A finite number or null."""
        if value is None:
            return None
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if real and math.isfinite(value):
            return float(value)
        self.problem(where, f"should be a finite number or null, but {told(value)}")
        return None

    def fraction(self, value: Any, where: str) -> float | None:
        """A number from 0 to 1, or null."""
        found = self.number(value, where)
        if found is None or 0 <= found <= 1:
            return found
        self.problem(where, f"should be a fraction from 0 to 1, not percent, but is {found:g}")
        return None


def told(value: Any) -> str:
    """What was found, in a few words."""
    shown = repr(value)
    if value is None:
        return "is missing"
    return "is " + (shown if len(shown) <= 40 else shown[:39] + "…")
