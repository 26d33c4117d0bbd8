"""Ω on all classes against Ω on some: accuracy where it matters, elsewhere, and on what is new."""

from __future__ import annotations

from functools import partial
from typing import Any

from retain.report.figures.canvas import Canvas, fitted, widest
from retain.report.figures.picture import WIDE, Picture
from retain.report.figures.style import GRID_LINE, MUTED, SURFACE, looks
from retain.report.format import class_names, percent
from retain.report.tables.by_class import Kept, kept
from retain.report.variants import Sequence

ROW, GAP, TOP, BELOW = 26, 44, 4, 26  # CSS pixels
LEAST = 0.05  # of accuracy that the axis spans


def adaptation(sequence: Sequence, prefix: str, chosen: tuple[str, ...]) -> list[Picture]:
    """One picture with a row a variant in three panels; none when nothing is known by class."""
    shown = [one for one in kept(sequence, chosen) if all(one.finals)]
    if not shown or not chosen:
        return []
    titles = (
        f"Classes that matter ({class_names(chosen)})",
        "Other classes of the first task",
        "Second task",
    )
    said = [
        f"{one.variant.label}: " + ", ".join(percent(final, 1) for final in one.finals)
        for one in shown
    ]
    return [
        Picture(
            name=f"{prefix}adaptation",
            caption="Accuracy at the end, in percent. Bars: one standard deviation over seeds. Ω "
            "on some classes alone gives up others, and leaves the network freer to learn.",
            description="Accuracy on the classes that matter, on the others and on the second "
            f"task. {'; '.join(said)}.",
            draw=partial(_draw, shown=shown, titles=titles),
        )
    ]


def _draw(width: int, shown: list[Kept], titles: tuple[str, ...]) -> Any:
    names = [fitted(one.variant.label, 0.4 * width, 12) for one in shown]
    left = 12 + widest(names, 12)
    right = 96 if width >= WIDE else 74
    panel = GAP + ROW * len(shown)
    canvas = Canvas(width, TOP + len(titles) * panel + BELOW)
    low, high = _limits(shown)

    def at(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    ticks = _ticks(low, high, 5 if width >= WIDE else 3)
    styles = looks(one.variant.method for one in shown)
    for place, title in enumerate(titles):
        top = TOP + place * panel
        canvas.text(0, top + 14, fitted(title, width, 13, "bold"), size=13, weight="bold")
        for tick in ticks:
            bottom = top + panel - 8
            canvas.line([at(tick)] * 2, [top + 30, bottom], GRID_LINE, linewidth=0.75, zorder=0)
        for row, (one, name, own) in enumerate(zip(shown, names, styles)):
            y = top + GAP + ROW * row
            final = one.finals[place]
            canvas.text(0, y, name, size=12)
            if final is None:
                continue
            ends = [at(min(max(final.mean + s * (final.sd or 0), low), high)) for s in (-1, 1)]
            canvas.line(ends, [y, y], own.colour, linewidth=1.5)
            fill = own.colour if own.filled else SURFACE
            canvas.line(
                [at(final.mean)], [y], own.colour, marker=own.marker, markersize=7,
                markerfacecolor=fill,
            )  # fmt: skip
            canvas.text(width - right + 12, y, percent(final, 1), size=11)
    for tick in ticks:
        y = TOP + len(titles) * panel + 6
        canvas.text(at(tick), y, f"{100 * tick:g} %", color=MUTED, size=10, ha="center")
    return canvas.figure


def _limits(shown: list[Kept]) -> tuple[float, float]:
    values = [
        final.mean + side * (final.sd or 0)
        for one in shown
        for final in one.finals
        if final
        for side in (-1, 1)
    ]
    low, high = max(min(values), 0.0), min(max(values), 1.0)
    room = max(0.06 * (high - low), (LEAST - (high - low)) / 2, 0.005)
    return max(low - room, 0.0), min(high + room, 1.0)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round places inside the axis."""
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / s <= most)
    first = -int(-low // step)
    return [k * step for k in range(first, int(high / step + 1e-9) + 1) if k * step >= low]
