"""Ω on all classes against Ω on some: accuracy where it matters, elsewhere, and on what is new."""

from __future__ import annotations

from functools import partial
from typing import Any

from retain.experiment.metrics import Spread
from retain.extras import needs
from retain.report.figures.canvas import WIDE, Canvas, Picture, fitted, widest
from retain.report.figures.style import INK, POINTS_PER_PIXEL, Look, looks
from retain.report.format import class_names, percent
from retain.report.tables.by_class import KeptByClass, kept
from retain.report.variants import Sequence

ROW, TITLE, GAP, BELOW = 26, 32, 12, 14  # CSS pixels
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
            caption="Accuracy at the end, in percent. Bars: one standard deviation over seeds. "
            "With Ω on some classes alone, others are given up, and the network is freer to learn.",
            description="Accuracy on the classes that matter, on the others and on the second "
            f"task. {'; '.join(said)}.",
            draw=partial(_draw, shown=shown, titles=titles),
        )
    ]


def _draw(width: int, shown: list[KeptByClass], titles: tuple[str, ...]) -> Any:
    names = [fitted(one.variant.label, 0.4 * width, 12) for one in shown]
    left = 12 + widest(names, 12)
    right = 96 if width >= WIDE else 74
    high = ROW * len(shown)
    canvas = Canvas(width, len(titles) * (TITLE + high + GAP) + BELOW)
    styles = looks(one.variant.method for one in shown)
    axes = None
    for place, title in enumerate(titles):
        top = place * (TITLE + high + GAP)
        canvas.heading(top + 14, title)
        axes = canvas.plot(left, top + TITLE, width - left - right, high, sharex=axes)
        axes.tick_params(labelbottom=place == len(titles) - 1)
        _rows(axes, [one.finals[place] for one in shown], styles)
        axes.set_yticks(range(len(shown)), names, color=INK, size=12 * POINTS_PER_PIXEL, ha="left")
        axes.tick_params(axis="y", pad=left * POINTS_PER_PIXEL)
    assert axes is not None
    axes.set_xlim(*(100 * limit for limit in _limits(shown)))
    axes.xaxis.set_major_locator(
        needs("matplotlib.ticker").MaxNLocator(6 if width >= WIDE else 3, steps=[1, 2, 5, 10])
    )
    axes.xaxis.set_major_formatter("{x:g} %")
    return canvas.figure


def _rows(axes: Any, finals: list[Spread | None], styles: list[Look]) -> None:
    """One accuracy below the other, with its spread, and as a number at the right."""
    for row, (final, own) in enumerate(zip(finals, styles)):
        if final is None:
            continue
        axes.errorbar(
            100 * final.mean,
            row,
            xerr=100 * (final.sd or 0),
            color=own.colour,
            marker=own.marker,
            markersize=7,
            markerfacecolor=own.fill,
        )
        beside = axes.get_yaxis_transform()
        axes.text(1, row, f"   {percent(final, 1)}", transform=beside, va="center", size=9)
    axes.set_ylim(len(finals) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.spines[["left", "bottom"]].set_visible(False)


def _limits(shown: list[KeptByClass]) -> tuple[float, float]:
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
