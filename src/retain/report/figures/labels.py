"""Names beside points and lines that never cover each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def at_the_right(
    axes: Any,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    colours: Sequence[str],
    *,
    size: float = 12,
    offset: float = 16,
) -> None:
    """Write each point's name right of the axes, and lead a thin line from the point to it.

    Points are in the axes' own units; limits and scales have to be set before.
    """
    figure = axes.figure
    pixels = [axes.transData.transform(point) for point in points]
    box = axes.get_window_extent()
    heights = [float(y) for _, y in pixels]
    places = spaced(heights, LINE, box.y0, box.y1)
    to_figure = figure.transFigure.inverted().transform
    for (x, y), place, name, colour in zip(pixels, places, names, colours):
        end = box.x1 + offset
        line = [to_figure(p) for p in ((x, y), (box.x1 + 2, place), (end - 4, place))]
        figure.add_artist(_leader(line, colour))
        figure.text(
            *to_figure((end, place)),
            name,
            va="center_baseline",
            ha="left",
            color=INK,
            size=size * POINTS_PER_PIXEL,
        )


def _leader(points: list[Any], colour: str) -> Any:
    from matplotlib.lines import Line2D

    xs, ys = zip(*points)
    return Line2D(xs, ys, color=colour or MUTED, linewidth=0.75, alpha=0.7, zorder=1)


def around(
    axes: Any, points: Sequence[tuple[float, float, str]], *, color: str, size: float = 10
) -> None:
    """Write a few letters beside each point, on the first side where they cover nothing.

    A point that has no free side stays without. Points are (x, y, letters) in the axes' units.
    """
    pixels = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in pixels]
    inside = axes.get_window_extent()
    for (x, y), (_, _, letters) in zip(pixels, points):
        wide, high = 0.62 * size * len(letters), size
        for side_x, side_y in (
            (0, 1),
            (1, 0),
            (-1, 0),
            (0, -1),
            (1, 1),
            (-1, -1),
            (-1, 1),
            (1, -1),
        ):
            middle = (x + side_x * (wide / 2 + 7), y + side_y * (high / 2 + 6))
            box = (
                middle[0] - wide / 2,
                middle[1] - high / 2,
                middle[0] + wide / 2,
                middle[1] + high / 2,
            )
            within = box[0] >= inside.x0 and box[2] <= inside.x1 + 6
            if within and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    letters,
                    axes.transData.inverted().transform(middle),
                    ha="center",
                    va="center",
                    color=color,
                    size=size * POINTS_PER_PIXEL,
                )
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
