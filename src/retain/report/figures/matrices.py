"""Accuracy matrices: one heat map a method, the number in every cell."""

from __future__ import annotations

from functools import partial
from typing import Any

from retain.extras import needs
from retain.report.figures.picture import NARROW, Picture
from retain.report.figures.style import COLOURS, INK, MUTED, POINTS_PER_PIXEL, SURFACE
from retain.report.results import Sequence, Variant
from retain.report.words import percent

LONGEST = 13  # characters of a task's name
CELL = 54  # CSS pixels at most
TOP = 46  # for the method's name and its numbers


def matrices(sequence: Sequence, prefix: str) -> list[Picture]:
    """A picture for each method: accuracy on task j (across) after learning task i (down)."""
    return [
        Picture(
            name=f"{prefix}matrix-{variant.method}" + (f"-{k}" if k else ""),
            title=variant.label,
            caption="",
            description=_description(sequence, variant),
            draw=partial(_draw, sequence=sequence, variant=variant),
            widths=(NARROW,),
        )
        for variants in [sequence.one_per_method()]
        for place, variant in enumerate(variants)
        for k in [[v.method for v in variants[:place]].count(variant.method)]
    ]


def _description(sequence: Sequence, variant: Variant) -> str:
    last = len(sequence.tasks) - 1
    final = [f"{percent(variant.at(last, j), 1)} on {t}" for j, t in enumerate(sequence.tasks)]
    return f"Accuracy matrix of {variant.label}. In percent, at the end: {', '.join(final)}."


def short(name: str, longest: int = LONGEST) -> str:
    """A name that fits."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _draw(width: int, sequence: Sequence, variant: Variant) -> Any:
    names = [short(task) for task in sequence.tasks]
    longest = max(len(name) for name in names)
    left = 8 + 6.5 * longest
    cell = min(CELL, (width - left - 2) / len(names))
    tilted = longest * 6.5 > cell - 4
    top = TOP + (4 + 4.8 * longest if tilted else 18)
    height = top + 0.72 * cell * len(names) + 4
    axes = _pixels(width, height)
    figure = axes.figure
    _text(axes, 0, 12, variant.label, size=13, weight="bold")
    numbers = (variant.measure("average_accuracy"), variant.measure("average_forgetting"))
    said = f"{percent(numbers[0], 1)} % at the end"
    said += f", forgot {percent(numbers[1], 1)}" if numbers[1] else ""
    _text(axes, 0, 31, said, size=11, color=MUTED)
    for j, name in enumerate(names):
        x = left + (j + 0.5) * cell
        if tilted:
            _text(
                axes,
                x,
                top - 6,
                name,
                size=10.5,
                color=MUTED,
                rotation=40,
                va="bottom",
                rotation_mode="anchor",
            )
        else:
            _text(axes, x, top - 10, name, size=10.5, color=MUTED, ha="center")
        _text(
            axes, left - 7, top + (j + 0.5) * 0.72 * cell, name, size=10.5, color=MUTED, ha="right"
        )
        for i in range(len(names)):
            _cell(axes, left + j * cell, top + i * 0.72 * cell, cell, variant.at(i, j))
    return figure


def _pixels(width: float, height: float) -> Any:
    """Axes without a frame that count CSS pixels from the upper left."""
    size = (width / 96, height / 96)
    figure = needs("matplotlib.figure").Figure(figsize=size, dpi=96)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return axes


def _text(axes: Any, x: float, y: float, text: str, *, size: float, **how: Any) -> None:
    axes.text(x, y, text, **{"va": "center", "color": INK, "size": size * POINTS_PER_PIXEL} | how)


def _cell(axes: Any, x: float, y: float, side: float, accuracy: Any) -> None:
    high = 0.72 * side
    patches = needs("matplotlib.patches")
    if accuracy is None:
        axes.plot(x + side / 2, y + high / 2, ".", color=MUTED, markersize=2)
        return
    # Squared: half of the colour is left for the upper 30 %, where methods differ.
    strength = 0.04 + 0.9 * accuracy.mean**2
    axes.add_patch(
        patches.Rectangle(
            (x + 1, y + 1), side - 2, high - 2, color=COLOURS["blue"][0], alpha=strength, lw=0
        )
    )
    _text(
        axes,
        x + side / 2,
        y + high / 2,
        f"{100 * accuracy.mean:.1f}" if side > 33 else f"{100 * accuracy.mean:.0f}",
        size=11 if side > 36 else 10,
        ha="center",
        color=SURFACE if strength > 0.5 else INK,
    )
