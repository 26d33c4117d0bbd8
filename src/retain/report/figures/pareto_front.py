"""Forgetting against accuracy on new tasks: a curve a method, and the Pareto front of all."""

from __future__ import annotations

from functools import partial
from typing import Any

from retain.report.figures.canvas import WIDE, Canvas, Picture
from retain.report.figures.labels import at_the_right, room
from retain.report.figures.style import GRID_LINE, MUTED, looks
from retain.report.tables.equal_accuracy import sentences
from retain.report.tables.operating_points import LESS, OperatingPoint, points, target
from retain.report.variants import Sequence

SHOWN = 0.25  # of accuracy on new tasks below FineTune's: what learns less is off the picture
DASHED = (
    f"; the dashed one is FineTune's accuracy on new tasks minus {100 * LESS:.0f} point. What "
    f"stays more than {100 * SHOWN:.0f} points below it is off the picture, and in the table."
)


def frontier(sequence: Sequence, prefix: str) -> list[Picture]:
    """One picture of every method along its knob; none where nothing finished."""
    found = points(sequence)
    if not found:
        return []
    return [
        Picture(
            name=f"{prefix}frontier",
            caption="Each point is a method with one value of its knob, if it has one: the mean "
            "over seeds, with the standard deviation as a cross. Right: new tasks are learned "
            "better; up: less is forgotten. The wide line is the Pareto front of all methods"
            + ("." if target(found) is None else DASHED),
            description=sentences(sequence),
            draw=partial(_draw, found=found),
        )
    ]


def _draw(width: int, found: list[OperatingPoint]) -> Any:
    height = 480 if width >= WIDE else 400
    curves = {point.curve: [p for p in found if p.curve == point.curve] for point in found}
    names, right = room(list(curves), width)
    canvas = Canvas(width, height)
    canvas.text(0, 12, "Forgetting, points", size=12, color=MUTED)
    axes = canvas.plot(48, 30, width - 48 - right, height - 30 - 46)
    front = sorted((p.new.mean, p.forgotten.mean) for p in found if p.front)
    axes.plot(
        [100 * x for x, _ in front],
        [100 * y for _, y in front],
        color=GRID_LINE,
        linewidth=8,
        solid_capstyle="round",
        zorder=0,
    )
    wanted = target(found)
    if wanted is not None:
        axes.axvline(100 * wanted, color=MUTED, linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
    styles, ends = looks(own[0].method for own in curves.values()), []
    left = -1.0 if wanted is None else wanted - SHOWN
    for own, several in zip(styles, curves.values()):
        line = sorted(several, key=lambda p: (p.value is None, p.value or 0))
        axes.errorbar(
            [100 * p.new.mean for p in line],
            [100 * p.forgotten.mean for p in line],
            xerr=[100 * (p.new.sd or 0) for p in line],
            yerr=[100 * (p.forgotten.sd or 0) for p in line],
            color=own.colour,
            linestyle=own.line,
            marker=own.marker,
            markerfacecolor=own.fill,
            elinewidth=0.6,
        )
        seen = [p for p in line if p.new.mean >= left] or line
        best = max(seen, key=lambda p: p.new.mean - p.forgotten.mean)
        ends.append((100 * best.new.mean, 100 * best.forgotten.mean))
    axes.margins(0.06)
    axes.set_xlim(left=max(axes.get_xlim()[0], 100 * left))
    axes.invert_yaxis()
    axes.set_xlabel("New tasks, when learned, %")
    at_the_right(axes, ends, names, [own.colour for own in styles])
    return axes.figure
