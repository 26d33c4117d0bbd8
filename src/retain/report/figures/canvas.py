"""Pictures before they are drawn, and drawing in CSS pixels, so that text never shrinks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from retain.extras import needs
from retain.report.figures.style import INK, POINTS_PER_PIXEL

WIDE, NARROW = 720, 320  # CSS pixels: beside a margin of text, and on a phone


@dataclass(frozen=True)
class Picture:
    """One picture of the report, drawn at each of `widths`: its text has a size, and no share."""

    name: str  # of its files
    caption: str  # what to see in it
    description: str  # for those who cannot see it
    draw: Callable[[int], Any]  # width in CSS pixels → matplotlib figure
    widths: tuple[int, ...] = (WIDE, NARROW)


class Canvas:
    """A figure on which places are counted in CSS pixels from the upper left."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = needs("matplotlib.figure").Figure(figsize=(width / 96, height / 96), dpi=96)
        to_shares = needs("matplotlib.transforms").Affine2D().scale(1 / width, -1 / height)
        self._place = {"transform": to_shares.translate(0, 1) + self.figure.transFigure}

    def text(self, x: float, y: float, said: str, *, size: float = 11, **how: Any) -> None:
        """Write `said`, `size` pixels high, the middle of the line at `y`."""
        how = {"va": "center", "color": INK, "size": size * POINTS_PER_PIXEL} | self._place | how
        self.figure.text(x, y, said, **how)

    def heading(self, y: float, said: str) -> None:
        """Write a name in bold at the left, as much of it as fits."""
        self.text(0, y, fitted(said, self.width, 13, "bold"), size=13, weight="bold")

    def plot(self, left: float, top: float, width: float, height: float, **how: Any) -> Any:
        """Axes of matplotlib in a box of the canvas."""
        box = (left, self.height - top - height, width, height)
        whole = (self.width, self.height, self.width, self.height)
        return self.figure.add_axes([pixels / all_ for pixels, all_ in zip(box, whole)], **how)


@lru_cache(maxsize=4096)
def wide(said: str, size: float = 11, weight: str = "normal") -> float:
    """How many CSS pixels `said` takes in DejaVu Sans, which is wider than most fonts of a page."""
    font = needs("matplotlib.font_manager").FontProperties(
        family="DejaVu Sans", size=size, weight=weight
    )
    measure = needs("matplotlib.textpath").text_to_path.get_text_width_height_descent
    return float(measure(said, font, ismath=False)[0])


def widest(names: Iterable[str], size: float = 11) -> float:
    """How many CSS pixels the widest of `names` takes."""
    return max(wide(name, size) for name in names)


def fitted(name: str, room: float, size: float = 11, weight: str = "normal") -> str:
    """As much of the beginning of `name` as fits into `room` CSS pixels."""
    kept = name
    while len(kept) > 1 and wide(kept + ("…" if kept != name else ""), size, weight) > room:
        kept = kept[:-1].rstrip()
    return kept if kept == name else kept + "…"


def fitted_end(name: str, room: float, size: float = 11) -> str:
    """As much of the end of `name` as fits, which tells a parameter from its neighbours."""
    return fitted(name[::-1], room, size)[::-1]
