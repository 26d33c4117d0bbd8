"""Names beside points and lines that never cover each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from retain.report.figures.canvas import fitted, widest
from retain.report.figures.style import INK, MUTED, POINTS_PER_PIXEL

LINE = 16  # CSS pixels from one name to the next


def spaced(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the `wanted` ones, in their order, at least `gap` apart, from `low` to `high`.

    Places that would overlap move apart around their common middle, as little as possible in the
    square. Where all do not fit, they are spread evenly.
    """
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    if len(order) * gap > high - low and len(order) > 1:
        gap = (high - low) / (len(order) - 1)
    # Pool adjacent violators: with the gaps taken off, the places only have to be in order.
    blocks: list[tuple[float, int]] = []  # sum and number of the wanted places in a block
    for rank, k in enumerate(order):
        blocks.append((wanted[k] - rank * gap, 1))
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [(a + b, m + n)]
    most = high - (len(order) - 1) * gap
    level = [min(max(_mean(block), low), most) for block in blocks for _ in range(block[1])]
    places = [0.0] * len(order)
    for rank, k in enumerate(order):
        places[k] = level[rank] + rank * gap
    return places


def _mean(block: tuple[float, int]) -> float:
    return block[0] / block[1]


def room(names: Sequence[str], width: float) -> tuple[list[str], float]:
    """The names, shortened where they would take half of `width`, and the pixels they need."""
    kept = [fitted(name, 0.45 * width, 12) for name in names]
    return kept, 20 + widest(kept, 12)


def at_the_right(
    axes: Any,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    colours: Sequence[str],
    *,
    size: float = 12,
    offset: float = 16,
) -> list[PixelLine]:
    """Write each point's name right of the axes, and lead a thin line from the point to it.

    Points are in the axes' own units; limits and scales have to be set before.

    Returns:
        The thin lines, in pixels of the figure.
    """
    axes.autoscale_view()  # matplotlib sets limits late, and places depend on them
    figure = axes.figure
    pixels = [axes.transData.transform(point) for point in points]
    box = axes.get_window_extent()
    heights = [float(y) for _, y in pixels]
    places = spaced(heights, LINE, box.y0, box.y1)
    to_figure = figure.transFigure.inverted().transform
    lines: list[PixelLine] = []
    for (x, y), place, name, colour in zip(pixels, places, names, colours):
        end = box.x1 + offset
        lines.append([(float(x), float(y)), (box.x1 + 2, place), (end - 4, place)])
        figure.add_artist(_leader([to_figure(p) for p in lines[-1]], colour))
        figure.text(
            *to_figure((end, place)),
            name,
            va="center_baseline",
            ha="left",
            color=INK,
            size=size * POINTS_PER_PIXEL,
        )
    return lines


def _leader(points: list[Any], colour: str) -> Any:
    from matplotlib.lines import Line2D

    xs, ys = zip(*points)
    return Line2D(xs, ys, color=colour or MUTED, linewidth=0.75, alpha=0.7, zorder=1)


def around(
    axes: Any,
    curves: Sequence[Sequence[tuple[float, float, str]]],
    colours: Sequence[str],
    *,
    others: Sequence[tuple[float, float]] = (),
    leaders: Sequence[PixelLine] = (),
    size: float = 10,
) -> None:
    """Write a few letters beside each point of `curves`, where they cover neither line nor name.

    A point that has no free side, or only sides on which its letters would stand as near to the
    point of another curve, stays without.

    Args:
        axes: limits and scales have to be set before.
        curves: of points (x, y, letters) in the axes' units.
        colours: of the letters, curve by curve.
        others: points that are marked beside those of the curves, in the same units.
        leaders: lines to be kept free as well, in pixels of the figure.
        size: of the letters, in CSS pixels.
    """
    inside = axes.get_window_extent()
    pixels = [_in_pixels(axes, [(x, y) for x, y, _ in curve]) for curve in curves]
    alone = _in_pixels(axes, others)
    marks = [*(place for curve in pixels for place in curve), *alone]
    taken = [_around(x, y, MARKER, MARKER) for x, y in marks]
    taken += [_around(x, y, 4, 4) for curve in pixels for x, y in _along(curve)]
    taken += [_around(x, y, 2, 2) for line in leaders for x, y in _along(line)]
    for curve, places, colour in zip(curves, pixels, colours):
        rest = [*(place for other in pixels if other is not places for place in other), *alone]
        for (_, _, letters), (x, y) in zip(curve, places):
            half = (0.31 * size * len(letters), 0.5 * size)
            for right, up in SIDES:
                middle = (x + right * (half[0] + MARKER), y + up * (half[1] + MARKER))
                box = _around(*middle, *half)
                outside = box[0] < inside.x0 or box[3] > inside.y1
                if outside or any(_overlap(box, other) for other in taken):
                    continue
                if any(_apart(box, other) < CLEAR * _apart(box, (x, y)) for other in rest):
                    continue
                taken.append(box)
                axes.annotate(
                    letters,
                    axes.transData.inverted().transform(middle),
                    ha="center",
                    va="center",
                    color=colour,
                    size=size * POINTS_PER_PIXEL,
                )
                break


# Where letters may stand: how far right and up, in half widths and heights.
SIDES = (
    *((0, 1), (1, 0), (0, -1), (-1, 0), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)),
    *((1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6)),
)
MARKER = 6  # CSS pixels from the middle of a marker to its edge, with a margin
CLEAR = 1.5  # times as far as its own point is every other curve's from a point's letters
PixelLine = list[tuple[float, float]]
LabelBox = tuple[float, float, float, float]


def _along(curve: Sequence[Any]) -> list[tuple[float, float]]:
    """Places on the line through `curve`, about every five pixels."""
    found = [(float(x), float(y)) for x, y in curve[:1]]
    for (x0, y0), (x1, y1) in pairwise(curve):
        steps = max(1, round(math.hypot(x1 - x0, y1 - y0) / 5))
        found += [
            (x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps) for k in range(1, steps + 1)
        ]
    return found


def _in_pixels(axes: Any, points: Sequence[tuple[float, float]]) -> PixelLine:
    return [(float(x), float(y)) for x, y in map(axes.transData.transform, points)]


def _apart(box: LabelBox, point: tuple[float, float]) -> float:
    """From the edge of the box to the point."""
    x, y = point
    return math.hypot(max(box[0] - x, x - box[2], 0), max(box[1] - y, y - box[3], 0))


def _around(x: float, y: float, half_wide: float, half_high: float) -> LabelBox:
    return (x - half_wide, y - half_high, x + half_wide, y + half_high)


def _overlap(a: LabelBox, b: LabelBox) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
