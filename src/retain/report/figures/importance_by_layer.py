"""Ω by layer: each parameter's share of the whole, and how it is distributed inside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from retain.report.figures.canvas import Canvas, fitted_end
from retain.report.figures.picture import NARROW, Picture
from retain.report.figures.style import GRID_LINE, INK, MUTED, look
from retain.report.format import slug
from retain.report.variants import Run, Sequence

MOST = 14  # rows; what is less important is summed up in one line
ROW, TOP = 34, 88  # CSS pixels
SHARE = (0.0, 0.40)  # the two columns, as parts of the width
INSIDE = (0.56, 1.0)


def importance(sequence: Sequence, prefix: str) -> list[Picture]:
    """A picture for each method that measured an importance."""
    pictures: dict[str, Picture] = {}
    for variant in sequence.one_per_method():
        run = next((run for run in variant.done if run.layers), None)
        if run is None:
            continue
        largest = sorted(run.layers, key=lambda name: -_share(run.layers[name]))[:3]
        said = [f"{name} has {100 * _share(run.layers[name]):.1f} %" for name in largest]
        name = f"{prefix}importance-{slug(variant.method)}"
        name += f"-{len(pictures) + 1}" if name in pictures else ""
        pictures[name] = Picture(
            name=name,
            caption="",
            description=f"Importance by parameter, {variant.label}: {', '.join(said)}.",
            draw=partial(_draw, label=variant.label, run=run),
            widths=(NARROW,),
        )
    return list(pictures.values())


def _share(layer: Mapping[str, Any]) -> float:
    return layer["share"] or 0.0


def _draw(width: int, label: str, run: Run) -> Any:
    ranked = sorted(run.layers, key=lambda name: -_share(run.layers[name]))
    shown = [name for name in run.layers if name in ranked[:MOST]]
    left_out = ranked[MOST:]
    canvas = Canvas(width, TOP + ROW * len(shown) + (24 if left_out else 4))
    canvas.text(0, 11, label, size=13, weight="bold")
    canvas.text(0, 30, f"seed {run.seed}", color=MUTED)
    canvas.text(SHARE[0] * width, 54, "share of all Ω", color=MUTED)
    canvas.text(INSIDE[0] * width, 54, "Ω of its weights", color=MUTED)
    scale = _scale([run.layers[name] for name in shown], width)
    widest = max(_share(run.layers[name]) for name in shown) or 1.0
    for place, name in enumerate(shown):
        y = TOP + ROW * place
        canvas.text(0, y, fitted_end(name, width, 10.5), size=10.5, color=MUTED)
        share = _share(run.layers[name])
        long = (SHARE[1] - SHARE[0]) * width * share / widest
        colour = look(run.method).colour
        canvas.box(SHARE[0] * width, y + 9, (max(long, 1), 10), colour)
        canvas.text(SHARE[0] * width + long + 4, y + 14, f"{100 * share:.1f} %", size=10)
        _spread(canvas, run.layers[name]["quantiles"], y + 14, scale, colour)
    _decades(canvas, scale, TOP - 10, TOP + ROW * len(shown) - 8)
    if left_out:
        rest = sum(_share(run.layers[name]) for name in left_out)
        said = f"and {len(left_out)} more with {100 * rest:.1f} % in all"
        canvas.text(0, TOP + ROW * len(shown) + 6, said, color=MUTED, style="italic")
    return canvas.figure


class _Scale:
    """From a value to its place on the logarithmic axis; what is smaller lies at its left end."""

    def __init__(self, low: float, high: float, left: float, right: float) -> None:
        self.low, self.high = math.log10(low), math.log10(high)
        self.left, self.right = left, right

    def __call__(self, value: float) -> float:
        at = math.log10(value) if value > 0 else self.low
        part = (at - self.low) / (self.high - self.low)
        return self.left + (self.right - self.left) * min(max(part, 0.0), 1.0)


def _scale(layers: list[Mapping[str, Any]], width: int) -> _Scale | None:
    """From the smallest quarter to the largest of all; None when no quantile is known."""
    known = [[q or 0.0 for q in layer["quantiles"]] for layer in layers if layer["quantiles"]]
    lower = [q for quantiles in known for q in quantiles[1:4] if q > 0]
    upper = [quantiles[-1] for quantiles in known if quantiles[-1] > 0]
    if not lower or not upper:
        return None
    # At most eight decades: a few near-zero weights must not squeeze all others together.
    high = max(upper)
    low = max(min(lower) / 2, high * 1e-8)
    return _Scale(low, high * 1.2, INSIDE[0] * width, INSIDE[1] * width - 4)


def _spread(
    canvas: Canvas, quantiles: list[float | None], y: float, scale: _Scale | None, colour: str
) -> None:
    """Box: the middle half. Tick: the median. Line: up to 99 %. Dot: the largest."""
    if not quantiles or scale is None:
        return
    x = [scale(q or 0.0) for q in quantiles]
    canvas.line([x[3], x[5]], [y, y], colour, linewidth=1)
    canvas.line([x[6]], [y], colour, marker=".", markersize=4)
    canvas.box(x[1], y - 5, (max(x[3] - x[1], 1), 10), colour, 0.45)
    canvas.line([x[2], x[2]], [y - 5, y + 5], INK, linewidth=1.5)


def _power(exponent: int) -> str:
    """A power of ten: as a number where that is short, else as 10⁻⁵."""
    if abs(exponent) <= 2:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _decades(canvas: Canvas, scale: _Scale | None, top: float, bottom: float) -> None:
    if scale is None:
        return
    exponents = range(math.ceil(scale.low), math.floor(scale.high) + 1)
    step = max(1, len(exponents) // 3)
    for exponent in exponents:
        x = scale(10.0**exponent)
        canvas.line([x, x], [top, bottom], GRID_LINE, linewidth=0.75, zorder=0)
        if exponent % step == 0:
            canvas.text(x, top - 7, _power(exponent), size=9, color=MUTED, ha="center")
