"""Which numbers an option of a method may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The finite numbers within bounds: from `least` to `most`, above `above`, below `below`."""

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    most: float = math.inf

    def holds(self, number: float) -> bool:
        """Whether the number is one of them."""
        bounded = self.least <= number <= self.most and self.above < number < self.below
        return bounded and math.isfinite(number)

    def __str__(self) -> str:
        sides = (">", self.above), ("≥", self.least), ("<", self.below), ("≤", self.most)
        return " and ".join(f"{sign} {bound:g}" for sign, bound in sides if math.isfinite(bound))


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, below=1)]
UpToOne = Annotated[float, Range(least=0, most=1)]
Count = Annotated[int, Range(least=0)]
Size = Annotated[int, Range(least=1)]
