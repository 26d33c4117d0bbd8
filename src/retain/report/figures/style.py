"""How every picture looks: one colour and one marker per method, for light and dark pages.

A figure is drawn once, in the light colours. On the page each colour becomes a CSS variable
(see `svg.py`), so that the same drawing follows the reader's light or dark setting.
Hues are those of Okabe and Ito, darkened or lightened until a line of them stands out from its
background; methods of one family share the hue and differ in marker, filling and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from retain.extras import needs

# CSS variable: colour on a light page, colour on a dark page
COLOURS = {
    "surface": ("#fffffe", "#16191d"),
    "ink": ("#1c2127", "#e8eaed"),
    "muted": ("#5c6670", "#a3adb8"),
    "grid": ("#e3e6ea", "#2c323a"),
    "blue": ("#0069a8", "#58b0ea"),
    "vermillion": ("#cf5b00", "#f28a45"),
    "orange": ("#b98000", "#f0bd45"),
    "green": ("#008a66", "#2fc79b"),
    "purple": ("#b3548a", "#e39ac6"),
    "grey": ("#6d7782", "#98a2ad"),
    "sky": ("#3d98d2", "#2f7fb5"),
}
INK, MUTED, GRID_LINE, SURFACE = (COLOURS[name][0] for name in ("ink", "muted", "grid", "surface"))
POINTS_PER_PIXEL = 72 / 96


@dataclass(frozen=True)
class Look:
    """How a method is drawn wherever it appears."""

    colour: str
    marker: str
    filled: bool = True
    line: Any = "-"

    @property
    def fill(self) -> str:
        """The colour inside its markers."""
        return self.colour if self.filled else SURFACE


LOOKS = {
    "finetune": Look(COLOURS["grey"][0], "X"),
    "joint": Look(COLOURS["ink"][0], "*"),
    "lwf": Look(COLOURS["green"][0], "^"),
    "ebll": Look(COLOURS["green"][0], "v", filled=False, line=(0, (4, 2))),
    "imm-mean": Look(COLOURS["purple"][0], "P"),
    "imm-mode": Look(COLOURS["purple"][0], "p", filled=False, line=(0, (4, 2))),
    "ewc": Look(COLOURS["vermillion"][0], "s"),
    "online-ewc": Look(COLOURS["vermillion"][0], "s", filled=False, line=(0, (4, 2))),
    "si": Look(COLOURS["orange"][0], "D"),
    "mas": Look(COLOURS["blue"][0], "o"),
    "local-mas": Look(COLOURS["blue"][0], "o", filled=False, line=(0, (4, 2))),
    "l2-sp": Look(COLOURS["sky"][0], "D", filled=False, line=(0, (5, 1.5, 1, 1.5))),
    "low-lr": Look(COLOURS["grey"][0], "v", line=(0, (1, 1.5))),
    "freeze": Look(COLOURS["grey"][0], "X", filled=False, line=(0, (4, 2))),
    "replay": Look(COLOURS["ink"][0], "*", filled=False, line=(0, (4, 2))),
    "kl": Look(COLOURS["green"][0], "^", filled=False, line=(0, (5, 1.5, 1, 1.5))),
    "lora": Look(COLOURS["purple"][0], "h", line=(0, (5, 1.5, 1, 1.5))),
    "wise-ft": Look(COLOURS["orange"][0], "p", line=(0, (4, 2))),
    "model-soup": Look(COLOURS["orange"][0], "P", filled=False, line=(0, (1, 1.5))),
}
AGAIN: tuple[dict[str, Any], ...] = (
    {"marker": "s", "line": (0, (1, 1.5))},
    {"marker": "^", "line": (0, (5, 1.5, 1, 1.5))},
    {"marker": "D", "line": (0, (8, 2))},
)
OTHER = Look(COLOURS["muted"][0], "H", line=(0, (1, 1.5)))

# What a method keeps, in the order in which it is stacked.
KINDS = {
    "model": COLOURS["grey"][0],
    "importance": COLOURS["blue"][0],
    "anchor": COLOURS["sky"][0],
    "teacher": COLOURS["green"][0],
    "encoder": COLOURS["orange"][0],
    "path": COLOURS["purple"][0],
}
OTHER_KINDS = (COLOURS["vermillion"][0], COLOURS["muted"][0])


def look(method: str) -> Look:
    """The method's look; one shared look for methods that this version does not know."""
    return LOOKS.get(method, OTHER)


def looks(methods: Iterable[str]) -> list[Look]:
    """A look for each; a method that occurs again keeps its colour and changes its marker."""
    found: list[Look] = []
    seen: dict[str, int] = {}
    for method in methods:
        again = seen.get(method, 0)
        seen[method] = again + 1
        own = look(method)
        found.append(replace(own, **AGAIN[(again - 1) % len(AGAIN)]) if again else own)
    return found


@contextmanager
def styled() -> Iterator[None]:
    """Inside, matplotlib draws in the report's style; afterwards its settings are as before."""
    with needs("matplotlib").rc_context(_SETTINGS):
        yield


_SETTINGS = {
    "text.parse_math": False,  # names are text: $5_$10 is no formula
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12 * POINTS_PER_PIXEL,
    "axes.titlesize": 13 * POINTS_PER_PIXEL,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12 * POINTS_PER_PIXEL,
    "xtick.labelsize": 11 * POINTS_PER_PIXEL,
    "ytick.labelsize": 11 * POINTS_PER_PIXEL,
    "legend.fontsize": 11 * POINTS_PER_PIXEL,
    "text.color": INK,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.edgecolor": GRID_LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID_LINE,
    "grid.linewidth": 0.75,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "retain",
    "axes.unicode_minus": True,
}
