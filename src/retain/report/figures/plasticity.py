"""Forgetting against plasticity: each method a point with its spread, the ideal corner marked."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from retain.experiment.metrics import Spread
from retain.report.figures.canvas import WIDE, Canvas, Picture
from retain.report.figures.labels import at_the_right, room
from retain.report.figures.style import MUTED, looks
from retain.report.variants import Sequence, Variant

PlasticityPoint = tuple[Variant, Spread, Spread]


def plasticity(sequence: Sequence, prefix: str) -> list[Picture]:
    """One picture; none when no method has both numbers, as with a single task."""
    points = _points(sequence)
    if not points:
        return []
    said = [
        f"{v.label} learned to {100 * x.mean:.1f} % and forgot {100 * y.mean:.1f} points"
        for v, x, y in points
    ]
    caption = (
        "Right: learned each task better. Up: forgot less. The upper right corner is what every "
        "method wants."
    )
    if any(x.sd is not None for _, x, _ in points):
        caption += " Bars: one standard deviation over seeds."
    if _stretched(points):
        caption += " The upright axis is stretched near zero, where the methods are close."
    return [
        Picture(
            name=f"{prefix}forgetting-plasticity",
            caption=caption,
            description="; ".join(said) + ".",
            draw=partial(_draw, points=points),
        )
    ]


def _points(sequence: Sequence) -> list[PlasticityPoint]:
    found = []
    for variant in sequence.one_per_method():
        learned, forgot = variant.measure("plasticity"), variant.measure("average_forgetting")
        if learned and forgot:
            found.append((variant, learned, forgot))
    return found


def _stretched(points: list[PlasticityPoint]) -> bool:
    forgot = [abs(y.mean) for _, _, y in points]
    return len(forgot) > 2 and max(forgot) > 6 * median(forgot) + 0.01


def _draw(width: int, points: list[PlasticityPoint]) -> Any:
    height = 430 if width >= WIDE else 360
    names, right = room([variant.label for variant, _, _ in points], width)
    canvas = Canvas(width, height)
    canvas.text(0, 12, "Forgetting, points", size=12, color=MUTED)
    axes = canvas.plot(44, 30, width - 44 - right, height - 30 - 46)
    _limits(axes, points)
    styles = looks(variant.method for variant, _, _ in points)
    for own, (_, x, y) in zip(styles, points):
        axes.errorbar(
            100 * x.mean,
            100 * y.mean,
            xerr=100 * (x.sd or 0),
            yerr=100 * (y.sd or 0),
            marker=own.marker,
            markersize=7,
            color=own.colour,
            markerfacecolor=own.fill,
            elinewidth=1,
            linestyle="none",
            zorder=3,
            clip_on=False,
        )
    _corner(axes)
    axes.set_xlabel("Accuracy when learned, %")
    at_the_right(
        axes,
        [(100 * x.mean, 100 * y.mean) for _, x, y in points],
        names,
        [own.colour for own in styles],
    )
    return axes.figure


def _limits(axes: Any, points: list[PlasticityPoint]) -> None:
    """Zero forgetting is always in view, and above it nothing but gains."""
    xs = [100 * (x.mean + side * (x.sd or 0)) for _, x, _ in points for side in (-1, 1)]
    ys = [100 * (y.mean + side * (y.sd or 0)) for _, _, y in points for side in (-1, 1)]
    margin = max(0.08 * (max(xs) - min(xs)), 0.5)
    axes.set_xlim(min(xs) - margin, min(max(xs) + margin, 100))
    low, high = min(*ys, 0.0), max(*ys, 2.0)
    if _stretched(points):
        axes.set_yscale("function", functions=(_root, _square))
        ticks = [t for t in (-4, -1, 0, 0.25, 1, 4, 9, 16, 25, 36, 49, 64, 81) if low <= t <= high]
        axes.set_yticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
        axes.set_ylim(high * 1.1, low - 0.01)
    else:
        axes.set_ylim(high + 0.08 * (high - low), low - 0.04 * (high - low))


def _root(values: Any) -> Any:
    return abs(values) ** 0.5 * (1 - 2 * (values < 0))


def _square(values: Any) -> Any:
    return values**2 * (1 - 2 * (values < 0))


def _corner(axes: Any) -> None:
    """Mark the corner in which a method learns everything and forgets nothing."""
    axes.plot([1, 1, 0.9], [0.88, 1, 1], transform=axes.transAxes, color=MUTED, lw=2, clip_on=False)
    axes.annotate(
        "ideal ↗",
        (1, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        color=MUTED,
        size=9,
        style="italic",
    )
