"""What each method keeps after each task, stacked by kind."""

from __future__ import annotations

from functools import partial
from typing import Any

from retain.extras import needs
from retain.report.figures.canvas import WIDE, Canvas, Picture, fitted, widest
from retain.report.figures.style import KINDS, OTHER_KINDS
from retain.report.format import size
from retain.report.variants import Sequence

Stacks = tuple[str, list[dict[str, int]]]
TOP, LEFT = 20, 58  # CSS pixels: a line of the legend; room for the upright axis
HIGH, PANEL = 120, 186  # a chart, and the same with its title and axis
FEWEST = 4  # tasks that a chart has room for: bars are no wider where there are fewer
WORDS = {"importance": "importance Ω", "anchor": "anchor θ*"}


def memory(sequence: Sequence, prefix: str) -> list[Picture]:
    """One picture with a small chart a method; none when no bytes are known."""
    kept = [
        (variant.label, run.memory)
        for variant in sequence.one_per_method()
        for run in [run for run in variant.done if run.memory][:1]
    ]
    if not kept:
        return []
    said = [f"{name} ends with {size(sum(steps[-1].values()))}" for name, steps in kept]
    return [
        Picture(
            name=f"{prefix}memory",
            caption="What must be kept after each task, the network itself included. If the bars "
            "are level, storage does not grow with the number of tasks.",
            description="; ".join(said) + ".",
            draw=partial(_draw, kept=kept),
        )
    ]


def _draw(width: int, kept: list[Stacks]) -> Any:
    longest = 28 + widest([label for label, _ in kept], 13)
    across = max(1, min(len(kept), 4 if width >= WIDE else 2, int((width - LEFT) / longest)))
    down = -(-len(kept) // across)
    kinds = _kinds(kept)
    columns = max(1, int(width // (40 + widest([WORDS.get(kind, kind) for kind in kinds]))))
    top = TOP * -(-len(kinds) // columns) + 20
    canvas = Canvas(width, top + down * PANEL)
    wide = (width - LEFT) / across
    first = None
    for place, (label, steps) in enumerate(kept):
        at = (LEFT + place % across * wide, top + place // across * PANEL + 26)
        axes = canvas.plot(*at, wide - 20, HIGH, sharey=first)
        axes.set_title(fitted(label, wide - 12, 13, "bold"))
        axes.tick_params(labelleft=place % across == 0)
        _stack(axes, steps, kinds)
        first = first or axes
    assert first is not None
    first.yaxis.set_major_locator(needs("matplotlib.ticker").MaxNLocator(4, steps=[1, 2, 5, 10]))
    first.yaxis.set_major_formatter(lambda tick, _: size(tick))
    canvas.figure.legend(
        *first.get_legend_handles_labels(),
        loc="upper left",
        ncols=columns,
        borderaxespad=0.2,
        handlelength=0.9,
        columnspacing=1.2,
    )
    return canvas.figure


def _stack(axes: Any, steps: list[dict[str, int]], kinds: dict[str, str]) -> None:
    """One stack a task, of the kinds in their order."""
    tasks = range(1, len(steps) + 1)
    below = [0.0] * len(steps)
    for kind, colour in kinds.items():
        tall = [float(step.get(kind, 0)) for step in steps]
        axes.bar(tasks, tall, bottom=below, color=colour, label=WORDS.get(kind, kind))
        below = [a + b for a, b in zip(below, tall)]
    axes.set_xlim(0.4, max(len(steps), FEWEST) + 0.6)
    axes.set_xticks(sorted({1, len(steps)}))
    axes.grid(visible=False, axis="x")
    axes.spines[["left", "bottom"]].set_visible(False)


def _kinds(kept: list[Stacks]) -> dict[str, str]:
    """The kinds that occur, in the order in which they are stacked, with their colours."""
    found = dict.fromkeys(kind for _, steps in kept for step in steps for kind in step)
    new = [kind for kind in found if kind not in KINDS]
    colours = KINDS | {kind: OTHER_KINDS[k % len(OTHER_KINDS)] for k, kind in enumerate(new)}
    return {kind: colour for kind, colour in colours.items() if kind in found}
