"""Accuracy matrices: one heat map a method, the number in every cell."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from retain.experiment.metrics import Spread
from retain.extras import needs
from retain.report.figures.canvas import NARROW, Canvas, Picture, fitted, wide, widest
from retain.report.figures.style import COLOURS, MUTED, POINTS_PER_PIXEL, SURFACE
from retain.report.format import percent, slug
from retain.report.variants import Sequence, Variant

LONGEST = 80  # CSS pixels of a task's name
WIDEST, HIGH = 54, 0.72  # a cell's width in CSS pixels at most, and its height in widths
TOP = 44  # for the method's name and its numbers


def matrices(sequence: Sequence, prefix: str, floor: float) -> list[Picture]:
    """A picture for each method: accuracy on task j (across) after learning task i (down).

    The colour is palest at the accuracy `floor`, which pictures that are compared have in common.
    """
    shown = sequence.one_per_method()
    pictures = []
    for place, variant in enumerate(shown):
        earlier = [other.method for other in shown[:place]].count(variant.method)
        name = f"{prefix}matrix-{slug(variant.method)}"
        pictures.append(
            Picture(
                name=f"{name}-{earlier + 1}" if earlier else name,
                caption="",
                description=_description(sequence, variant),
                draw=partial(_draw, sequence=sequence, variant=variant, floor=floor),
                widths=(NARROW,),
            )
        )
    return pictures


def colour_floor(sequence: Sequence) -> float:
    """The accuracy at which the colour begins: the lowest of any method, rounded down to 10 %."""
    tasks = range(len(sequence.tasks))
    found = [v.at(i, j) for v in sequence.one_per_method() for i in tasks for j in range(i + 1)]
    lowest = min((value.mean for value in found if value), default=0.0)
    return min(int(lowest * 10) / 10, 0.9)


def _description(sequence: Sequence, variant: Variant) -> str:
    last = len(sequence.tasks) - 1
    final = [f"{percent(variant.at(last, j), 1)} on {t}" for j, t in enumerate(sequence.tasks)]
    return f"Accuracy matrix of {variant.label}. In percent, at the end: {', '.join(final)}."


def _draw(width: int, sequence: Sequence, variant: Variant, floor: float) -> Any:
    names = [fitted(task, LONGEST) for task in sequence.tasks]
    longest = widest(names)
    left = longest + 10
    cell = min(WIDEST, (width - left - 1) / len(names))
    tilted = longest > cell - 4
    if tilted:  # the last name reaches beyond its column
        beyond = max(0.0, 0.8 * wide(names[-1]) - 8)
        cell = min(WIDEST, (width - left - beyond) / len(names))
    top = TOP + (16 + 0.66 * longest if tilted else 20)
    size = cell * len(names)
    canvas = Canvas(width, top + HIGH * size + 2)
    canvas.heading(11, variant.label)
    canvas.text(0, 30, _ending(variant), color=MUTED)
    axes = canvas.plot(left, top, size, HIGH * size)
    _cells(
        axes,
        [[variant.at(i, j) for j in range(len(names))] for i in range(len(names))],
        floor,
        cell,
    )
    tilt = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if tilted else {}
    middles = [place + 0.5 for place in range(len(names))]
    axes.set_xticks(middles, names, **tilt)
    axes.set_yticks(middles, names)
    axes.tick_params(top=True, labeltop=True, labelbottom=False, pad=6)
    return canvas.figure


def _cells(axes: Any, accuracy: list[list[Spread | None]], floor: float, wide: float) -> None:
    """A field for every accuracy, the stronger in colour the higher, with the number in it."""
    blue = needs("matplotlib.colors").ListedColormap([COLOURS["blue"][0]])
    strengths = [[_strength(cell.mean, floor) if cell else 0.0 for cell in row] for row in accuracy]
    axes.pcolormesh(strengths, cmap=blue, alpha=strengths)
    for i, row in enumerate(accuracy):
        for j, cell in enumerate(row):
            if cell:
                said = f"{100 * cell.mean:.{1 if wide > 31 else 0}f}"
                size = (11 if wide > 36 else 10) * POINTS_PER_PIXEL
                axes.text(j + 0.5, i + 0.5, said, size=size, ha="center", va="center")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for side in (axes.xaxis, axes.yaxis):  # a gap between the fields
        side.set_ticks(range(1, len(accuracy)), minor=True)
        side.grid(which="minor", color=SURFACE, linewidth=1.5)
    axes.set_axisbelow(False)


def _strength(accuracy: float, floor: float) -> float:
    """How much of the colour; never so much that the page's own text could not be read on it."""
    rise = max(0.0, (accuracy - floor) / (1 - floor))
    return 0.04 + 0.46 * math.pow(rise, 1.5)


def _ending(variant: Variant) -> str:
    accuracy = variant.measure("average_accuracy")
    forgetting = variant.measure("average_forgetting")
    said = f"{percent(accuracy, 1)} % at the end"
    return said + (f", forgot {percent(forgetting, 1)}" if forgetting else "")
