"""A picture before it is drawn: what it is called, what it says, and how to draw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WIDE, NARROW = 720, 320  # CSS pixels: beside a margin of text, and on a phone


@dataclass(frozen=True)
class Picture:
    """One picture of the report, drawn at each of `widths` so that its text never shrinks."""

    name: str  # of its files
    caption: str  # what to see in it
    description: str  # for those who cannot see it
    draw: Callable[[int], Any]  # width in CSS pixels → matplotlib figure
    widths: tuple[int, ...] = (WIDE, NARROW)
