"""What each method keeps after each task, stacked by kind."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from retain.report.figures.canvas import Canvas, fitted, widest
from retain.report.figures.picture import WIDE, Picture
from retain.report.figures.style import GRID_LINE, KINDS, MUTED, OTHER_KINDS
from retain.report.format import size
from retain.report.variants import Bytes, Sequence

Kept = tuple[str, tuple[Bytes, ...]]
TOP, LEFT = 20, 52  # CSS pixels: a line of the legend; room for the upright axis
HIGH, PANEL = 120, 186  # a stack that fills its panel; the panel with its title and axis
WORDS = {"importance": "importance Ω", "anchor": "anchor θ*"}


def memory(sequence: Sequence, prefix: str) -> list[Picture]:
    """One picture with a small chart a method; none when no bytes are known."""
    kept = [
        (variant.label, run.memory)
        for variant in sequence.one_per_method()
        for run in [run for run in variant.done if run.memory][:1]
    ]
    if not kept:
        return []
    said = [f"{name} ends with {size(sum(steps[-1].values()))}" for name, steps in kept]
    return [
        Picture(
            name=f"{prefix}memory",
            caption="What must be kept after each task, the network itself included. Level bars: "
            "the price does not grow with the number of tasks.",
            description="; ".join(said) + ".",
            draw=partial(_draw, kept=kept),
        )
    ]


def _draw(width: int, kept: list[Kept]) -> Any:
    longest = 28 + widest([label for label, _ in kept], 13)
    across = max(1, min(len(kept), 4 if width >= WIDE else 2, int((width - LEFT) / longest)))
    down = -(-len(kept) // across)
    kinds = _kinds(kept)
    legend, lines = _legend_places(kinds, width)
    canvas = Canvas(width, TOP * lines + 24 + down * PANEL)
    for kind, x, line in legend:
        y = 12 + TOP * line
        canvas.box(x, y - 5, (10, 10), kinds[kind])
        canvas.text(x + 16, y, WORDS.get(kind, kind))
    tallest = max(sum(step.values()) for _, steps in kept for step in steps)
    ticks = _ticks(tallest)
    wide = (width - LEFT) / across
    for place, (label, steps) in enumerate(kept):
        x = LEFT + place % across * wide
        y = TOP * lines + 24 + place // across * PANEL
        canvas.text(x, y + 10, fitted(label, wide - 12, 13, "bold"), size=13, weight="bold")
        for tick in ticks:
            height = y + 26 + HIGH * (1 - tick / ticks[-1])
            canvas.line([x, x + wide - 20], [height, height], GRID_LINE, linewidth=0.75, zorder=0)
            if place % across == 0:
                canvas.text(x - 8, height, size(tick), size=10, color=MUTED, ha="right")
        _bars(canvas, (x, y + 26, wide - 20), steps, kinds, ticks[-1])
    return canvas.figure


def _bars(
    canvas: Canvas,
    panel: tuple[float, float, float],
    steps: tuple[Bytes, ...],
    kinds: dict[str, str],
    full: float,
) -> None:
    """One stack a task in a panel of (left, top, width) whose height stands for `full` bytes."""
    left, top, wide = panel
    each = min(wide / len(steps), 40)
    for place, step in enumerate(steps):
        below = top + HIGH
        for kind, colour in kinds.items():
            tall = HIGH * step.get(kind, 0) / full
            below -= tall
            canvas.box(left + (place + 0.1) * each, below, (0.8 * each, tall), colour)
        if place in (0, len(steps) - 1):
            middle = left + (place + 0.5) * each
            said = f"task {place + 1}" if place == 0 and each > 34 else str(place + 1)
            canvas.text(middle, top + HIGH + 11, said, size=10, color=MUTED, ha="center")


def _ticks(largest: float) -> list[float]:
    """Round numbers from zero to beyond `largest`."""
    power = 10.0 ** math.floor(math.log10(max(largest, 1)))
    step = next(s * power / 10 for s in (1, 2, 5, 10, 20, 50) if 4 * s * power / 10 >= largest)
    return [k * step for k in range(math.ceil(largest / step) + 1)]


def _kinds(kept: list[Kept]) -> dict[str, str]:
    """The kinds that occur, in the order in which they are stacked, with their colours."""
    found = dict.fromkeys(kind for _, steps in kept for step in steps for kind in step)
    new = [kind for kind in found if kind not in KINDS]
    colours = KINDS | {kind: OTHER_KINDS[k % len(OTHER_KINDS)] for k, kind in enumerate(new)}
    return {kind: colour for kind, colour in colours.items() if kind in found}


def _legend_places(kinds: dict[str, str], width: int) -> tuple[list[tuple[str, float, int]], int]:
    """Each kind's place in lines of text that fit, and how many lines there are."""
    places, x, line = [], 0.0, 0
    for kind in kinds:
        need = 32 + widest([WORDS.get(kind, kind)])
        if x + need > width and x:
            x, line = 0.0, line + 1
        places.append((kind, x, line))
        x += need
    return places, line + 1
