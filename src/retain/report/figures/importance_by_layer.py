"""Ω by layer: each parameter's share of the whole, and how it is distributed inside."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from retain.experiment.record import LayerImportance
from retain.extras import needs
from retain.report.figures.canvas import NARROW, Canvas, Picture, fitted_end
from retain.report.figures.style import INK, MUTED, look
from retain.report.format import slug
from retain.report.variants import Sequence, ShownRun

MOST = 14  # rows; what is less important is summed up in one line
ROW, TOP = 34, 78  # CSS pixels
ABOVE, BAR = 0.7, 0.3  # of a row: the name above a bar's middle, the bar
SHARE, INSIDE = 0.40, 0.56  # of the width: where the first column ends and the second begins


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


def _share(layer: LayerImportance) -> float:
    return layer.get("share") or 0.0


def _draw(width: int, label: str, run: ShownRun) -> Any:
    ranked = sorted(run.layers, key=lambda name: -_share(run.layers[name]))
    shown = [name for name in run.layers if name in ranked[:MOST]]
    left_out = ranked[MOST:]
    high = ROW * len(shown)
    canvas = Canvas(width, TOP + high + (24 if left_out else 4))
    canvas.heading(11, label)
    canvas.text(0, 30, f"seed {run.seed}", color=MUTED)
    canvas.text(0, 54, "share of all Ω", color=MUTED)
    canvas.text(INSIDE * width, 54, "Ω of its weights", color=MUTED)
    for place, name in enumerate(shown):
        y = TOP + ROW * place
        canvas.text(0, y + 10, fitted_end(name, width, 10.5), size=10.5, color=MUTED)
    colour, layers = look(run.method).colour, [run.layers[name] for name in shown]
    inner = INSIDE * width
    shares = canvas.plot(0, TOP, SHARE * width, high)
    _shares(shares, [_share(layer) for layer in layers], colour)
    spreads = canvas.plot(inner, TOP, width - inner - 4, high, sharey=shares)
    _spreads(spreads, [layer.get("quantiles", []) for layer in layers], colour)
    if left_out:
        rest = sum(_share(run.layers[name]) for name in left_out)
        said = f"and {len(left_out)} more with {100 * rest:.1f} % in all"
        canvas.text(0, TOP + high + 14, said, color=MUTED, style="italic")
    return canvas.figure


def _shares(axes: Any, shares: list[float], colour: str) -> None:
    bars = axes.barh(range(len(shares)), shares, height=BAR, color=colour)
    axes.bar_label(bars, [f"{100 * share:.1f} %" for share in shares], padding=3, size=7.5)
    axes.set_xlim(0, max(shares) or 1.0)
    axes.set_ylim(len(shares) - ABOVE, -ABOVE)
    axes.set_axis_off()


def _spreads(axes: Any, quantiles: list[list[float]], colour: str) -> None:
    """Box: the middle half. Tick: the median. Line: up to 99 %. Dot: the largest."""
    known = {row: found for row, found in enumerate(quantiles) if found}
    lower = [q for found in known.values() for q in found[1:4] if q > 0]
    upper = [found[-1] for found in known.values() if found[-1] > 0]
    axes.tick_params(
        left=False, labelleft=False, top=True, labeltop=True, labelbottom=False, labelsize=6.8
    )
    axes.grid(visible=False, axis="y")
    axes.spines[:].set_visible(False)
    if not lower or not upper:
        axes.set_axis_off()
        return
    # At most eight decades: a few near-zero weights must not squeeze all others together.
    high = max(upper)
    low = max(min(lower) / 2, high * 1e-8)
    axes.set_xscale("log")
    axes.set_xlim(low, high * 1.2)
    axes.xaxis.set_major_locator(needs("matplotlib.ticker").LogLocator(numticks=4))
    axes.xaxis.set_major_formatter(lambda value, _: _power(round(math.log10(value))))
    axes.bxp(
        [
            {"q1": q[1], "med": q[2], "q3": q[3], "whislo": q[1], "whishi": q[5], "fliers": [q[6]]}
            for q in ([max(value, low) for value in found] for found in known.values())
        ],
        positions=list(known),
        orientation="horizontal",
        widths=BAR,
        showcaps=False,
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.45, "linewidth": 0},
        medianprops={"color": INK, "linewidth": 1.5},
        whiskerprops={"color": colour, "linewidth": 1},
        flierprops={
            "marker": ".",
            "markersize": 4,
            "markerfacecolor": colour,
            "markeredgecolor": colour,
        },
        manage_ticks=False,
    )


def _power(exponent: int) -> str:
    """A power of ten: as a number where that is short, else as 10⁻⁵."""
    if abs(exponent) <= 2:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
