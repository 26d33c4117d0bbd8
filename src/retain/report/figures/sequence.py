"""Accuracy over the sequence: all tasks seen so far, and what is left of the first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from retain.experiment.metrics import Spread, mean_or_none
from retain.report.figures.canvas import Canvas, Picture, fitted, widest
from retain.report.figures.labels import LINE, at_the_right, room
from retain.report.figures.style import looks
from retain.report.variants import Sequence, ShownRun, Variant

LEAST = 5.0  # points that an upright axis spans
Follow = Callable[[ShownRun, int], float | None]


def over_the_sequence(sequence: Sequence, prefix: str) -> list[Picture]:
    """Two curves a method in one picture; none where there is only one task."""
    shown = sequence.one_per_method()
    if len(sequence.tasks) < 2 or not shown:
        return []
    last = len(sequence.tasks) - 1
    ends = [(v.label, _followed(v, last, _seen), _followed(v, last, _first)) for v in shown]
    said = [
        f"{label} ends at {100 * seen.mean:.1f} % over all tasks and {100 * first.mean:.1f} % on "
        "the first"
        for label, seen, first in ends
        if seen and first
    ]
    return [
        Picture(
            name=f"{prefix}sequence",
            caption="Above: the mean over all tasks seen so far. Below: the first task alone, as "
            "the others are learned. A line that stays level has kept what it knew."
            + (" Bands: one standard deviation over seeds." if _banded(shown) else ""),
            description="; ".join(said) + ".",
            draw=partial(_draw, sequence=sequence, shown=shown),
        )
    ]


def _banded(shown: tuple[Variant, ...]) -> bool:
    """Bands only where there are spreads to show, and few enough of them to be told apart."""
    return len(shown) <= 4 and any(len(variant.done) > 1 for variant in shown)


def _seen(run: ShownRun, after: int) -> float | None:
    return mean_or_none([run.at(after, j) for j in range(after + 1)])


def _first(run: ShownRun, after: int) -> float | None:
    return run.at(after, 0)


def _followed(variant: Variant, after: int, follow: Follow) -> Spread | None:
    return variant.over(lambda run: follow(run, after))


def _draw(width: int, sequence: Sequence, shown: tuple[Variant, ...]) -> Any:
    names = [fitted(task, 60) for task in sequence.tasks]
    labels, right = room([variant.label for variant in shown], width)
    inner = width - 48 - right
    tilted = widest(names) > inner / max(len(names) - 1, 1) - 6
    below = 34 + (0.66 * widest(names) if tilted else 0)
    high = max(210, LINE * len(shown) + 20)
    panels = (
        ("All tasks seen so far, %", _seen),
        (f"The first alone, {fitted(sequence.tasks[0], 90, 13)}, %", _first),
    )
    canvas = Canvas(width, len(panels) * (26 + high + below))
    for place, (title, follow) in enumerate(panels):
        axes = canvas.plot(44, 26 + place * (26 + high + below), inner, high)
        axes.set_title(title)
        _lines(axes, shown, labels, follow)
        axes.set_xticks(range(len(names)), names)
        if tilted:
            axes.tick_params(axis="x", rotation=40)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    return canvas.figure


def _lines(axes: Any, shown: tuple[Variant, ...], labels: list[str], follow: Follow) -> None:
    ends = []
    tasks = len(shown[0].runs[0].tasks)
    for own, variant, name in zip(looks(v.method for v in shown), shown, labels):
        followed = [(i, _followed(variant, i, follow)) for i in range(tasks)]
        known = [(i, value) for i, value in followed if value]
        if not known:
            continue
        at = [i for i, _ in known]
        means = [100 * value.mean for _, value in known]
        axes.plot(
            at,
            means,
            color=own.colour,
            linestyle=own.line,
            marker=own.marker,
            markersize=5,
            markerfacecolor=own.fill,
            clip_on=False,
        )
        if _banded(shown):
            spreads = [100 * (value.sd or 0) for _, value in known]
            low, high = zip(*((m - s, m + s) for m, s in zip(means, spreads)))
            axes.fill_between(at, low, high, color=own.colour, alpha=0.15, linewidth=0)
        ends.append(((at[-1], means[-1]), name, own.colour))
    axes.set_xlim(-0.15, tasks - 0.85)
    low, high = axes.get_ylim()
    if high - low < LEAST:  # a closer look would make noise look like news
        low, high = (low + high - LEAST) / 2, (low + high + LEAST) / 2
    axes.set_ylim(low, min(high, 100))
    if ends:
        points, names, colours = zip(*ends)
        at_the_right(axes, points, names, colours)
