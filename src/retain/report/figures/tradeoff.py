"""Trade-off over λ: what is kept of the old tasks against what is learned of the new ones."""

from __future__ import annotations

from functools import partial
from typing import Any

from retain.report.figures.canvas import WIDE, Canvas, Picture
from retain.report.figures.labels import around, at_the_right, room
from retain.report.figures.style import MUTED, looks
from retain.report.format import BOUNDS, method_name, number
from retain.report.variants import Sequence, ShownRun, Variant

LONG = 5  # letters of a λ that are written out
Curve = tuple[str, str, list[tuple[float, float, float]]]  # method, name, [(λ, new, old)]


def tradeoffs(sequence: Sequence, prefix: str) -> list[Picture]:
    """One picture of all methods that ran with several strengths; none when there are none."""
    curves = _curves(sequence)
    if not curves:
        return []
    said = []
    for _, name, points in curves:
        strength, new, old = max(points, key=lambda point: point[1] + point[2])
        said.append(
            f"{name} does best at λ = {number(strength)}: {100 * old:.1f} % on old tasks, "
            f"{100 * new:.1f} % on new ones"
        )
    return [
        Picture(
            name=f"{prefix}tradeoff",
            caption="Each point is one strength λ. A larger λ moves up, to what was known, and "
            "left, away from what is new; a curve nearer the upper right corner gives a better "
            "choice. Numbers: λ, where there is room; along a curve it only grows. Means over "
            "seeds.",
            description="; ".join(said) + ".",
            draw=partial(_draw, curves=curves, bounds=_bounds(sequence)),
        )
    ]


def _curves(sequence: Sequence) -> list[Curve]:
    groups: dict[str, list[Variant]] = {}
    for variant in sequence.variants:
        first = variant.runs[0]
        if variant.done and first.strength is not None and not first.strength_search:
            groups.setdefault(variant.curve, []).append(variant)
    curves = []
    for name, variants in groups.items():
        placed = [(v.runs[0].strength or 0.0, *_place(v)) for v in variants]
        points = sorted((s, x, y) for s, x, y in placed if x is not None and y is not None)
        if len(points) > 1:
            curves.append((variants[0].method, name, points))
    return curves


def _place(variant: Variant) -> tuple[float | None, float | None]:
    """Accuracy on new tasks when learned, and on old tasks at the end, over the seeds."""
    new, old = variant.over(ShownRun.new_tasks), variant.over(ShownRun.old_tasks)
    return (new.mean if new else None, old.mean if old else None)


def _bounds(sequence: Sequence) -> list[tuple[str, float, float]]:
    placed = [(v.method, *_place(v)) for v in sequence.variants if v.method in BOUNDS]
    return [(m, x, y) for m, x, y in placed if x is not None and y is not None]


def _draw(width: int, curves: list[Curve], bounds: list[tuple[str, float, float]]) -> Any:
    height = 440 if width >= WIDE else 360
    names, right = room([c[1] for c in curves] + [method_name(b[0]) for b in bounds], width)
    canvas = Canvas(width, height)
    canvas.text(0, 12, "Old tasks, at the end, %", size=12, color=MUTED)
    axes = canvas.plot(48, 30, width - 48 - right, height - 30 - 46)
    styles = looks(method for method, _, _ in [*curves, *bounds])
    for own, (_, _, points) in zip(styles, curves):
        axes.plot(
            [100 * x for _, x, _ in points],
            [100 * y for _, _, y in points],
            color=own.colour,
            linestyle=own.line,
            marker=own.marker,
            markerfacecolor=own.fill,
        )
    for own, (_, x, y) in zip(styles[len(curves) :], bounds):
        axes.plot(100 * x, 100 * y, marker=own.marker, color=own.colour, markersize=8)
    axes.margins(0.06)
    axes.set_xlabel("New tasks, when learned, %")
    best = [max(points, key=lambda point: point[1] + point[2]) for _, _, points in curves]
    ends = [(100 * x, 100 * y) for _, x, y in [*best, *bounds]]
    leaders = at_the_right(axes, ends, names, [own.colour for own in styles])
    marked = [[(100 * x, 100 * y, _short(s)) for s, x, y in points] for _, _, points in curves]
    around(
        axes,
        marked,
        [own.colour for own in styles],
        others=[(100 * x, 100 * y) for _, x, y in bounds],
        leaders=leaders,
    )
    return axes.figure


def _short(strength: float) -> str:
    """λ in as few letters as tell it: 0.01, 400, 1e6, 1e-5."""
    mantissa, _, power = f"{strength:e}".partition("e")
    scientific = f"{float(mantissa):g}e{int(power)}"
    plain = number(strength)
    return scientific if len(scientific) < len(plain) and len(plain) > LONG else plain
