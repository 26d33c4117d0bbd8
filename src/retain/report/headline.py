"""The table that says how it ended: each method's final accuracy and what it forgot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from retain.experiment.checks import visible
from retain.report.grid import Cell, Grid
from retain.report.naming import BOUNDS, number
from retain.report.results import Results, Sequence, Variant
from retain.report.words import many, percent, seconds, size

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

# measure, column, and which end of it is the good one
SHOWN: tuple[tuple[str, str, Callable[..., float]], ...] = (
    ("average_accuracy", "Final accuracy, %", max),
    ("average_forgetting", "Forgetting, points", min),
    ("plasticity", "Accuracy when learned, %", max),
)
UNKNOWN = Cell("–", mark="quiet")
COLUMNS = ("Method", *(column for _, column, _ in SHOWN), "Seeds")


def headline(sequence: Sequence) -> Grid:
    """One row a variant: final accuracy, forgetting and plasticity, mean ± sd over seeds."""
    best = {name: _best(sequence, name, pick) for name, _, pick in SHOWN}
    rows = tuple(_row(variant, best) for variant in sequence.variants)
    seeds = sorted({len(variant.done) for variant in sequence.variants if variant.done})
    return Grid(
        title=f"Final accuracy and forgetting: {sequence.name}",
        columns=COLUMNS,
        rows=rows,
        caption=_caption(sequence, seeds),
        sortable=True,
    )


def _caption(sequence: Sequence, seeds: list[int]) -> str:
    tasks = many(len(sequence.tasks), "task")
    if not seeds:
        return f"No run over {tasks} is finished yet."
    over = f"{many(seeds[-1], 'seed')}, mean ± standard deviation"
    if seeds[-1] == 1:
        over = "n = 1 seed, so no spread can be given"
    elif len(seeds) > 1:
        over += "; the last column says where there are fewer"
    return (
        f"After the last of {tasks}: {over}. Forgetting is how far an earlier task's accuracy fell "
        "from its best, averaged over all tasks but the last."
        + (_BOLD if sum(v.method not in BOUNDS for v in sequence.variants if v.done) > 1 else "")
    )


_BOLD = " Bold: the best of each column, the bounds FineTune and Joint aside."


def _best(sequence: Sequence, name: str, pick: Callable[..., float]) -> float | None:
    rivals = [v.measure(name) for v in sequence.variants if v.method not in BOUNDS]
    means = [value.mean for value in rivals if value]
    return pick(means) if len(means) > 1 else None


def _row(variant: Variant, best: dict[str, float | None]) -> tuple[Cell, ...]:
    cells = [Cell(variant.label)]
    for name, _, _ in SHOWN:
        value = variant.measure(name)
        is_best = value is not None and value.mean == best[name] and variant.method not in BOUNDS
        mean = value.mean if value else None
        cells.append(Cell(percent(value), mean, "best" if is_best else "" if value else "quiet"))
    return (*cells, _seeds(variant))


def _seeds(variant: Variant) -> Cell:
    """How many seeds stand behind the row, and what became of the others."""
    said = [str(len(variant.done))] if variant.done else []
    failed = sum(run.status == "failed" for run in variant.runs)
    running = [run for run in variant.runs if run.status == "running"]
    if failed:
        said.append(f"{failed} failed")
    if running:
        at = (
            f" ({running[0].learned} of {len(running[0].tasks)} tasks)" if len(running) == 1 else ""
        )
        said.append(f"{len(running)} running{at}")
    return Cell(", ".join(said), len(variant.done), "bad" if failed else "")


SPENT = {
    "train_seconds": "Training",
    "importance_seconds": "Importance",
    "evaluation_seconds": "Evaluation",
}


def cost(sequence: Sequence) -> Grid | None:
    """One row a variant: seconds by kind of work and bytes kept; None when nothing is known."""
    kinds = [kind for kind in SPENT if any(v.measure(kind) for v in sequence.variants)]
    rows = []
    for variant in sequence.variants:
        spent = [variant.measure(kind) for kind in kinds]
        kept = [sum(run.memory[-1].values()) for run in variant.done if run.memory]
        if any(spent) or kept:
            cells = [Cell(seconds(s.mean), s.mean) if s else UNKNOWN for s in spent]
            bytes_kept = Cell(size(max(kept)), max(kept)) if kept else UNKNOWN
            rows.append((Cell(variant.label), *cells, bytes_kept))
    if not rows:
        return None
    return Grid(
        title=f"Time and memory: {sequence.name}",
        columns=("Method", *(SPENT[kind] for kind in kinds), "Kept at the end"),
        rows=tuple(rows),
        caption=("Time of one run, mean over seeds. " if kinds else "") + "Kept: everything that "
        "must be in memory or on disk for the next task, the network itself included.",
        sortable=True,
    )


def kept_at_each_step(sequence: Sequence) -> Grid | None:
    """One row a variant: bytes kept after each task, and how many times the network that is."""
    rows = []
    for variant in sequence.one_per_method():
        steps = next((run.memory for run in variant.done if run.memory), ())
        if steps:
            sizes = [sum(step.values()) for step in steps]
            cells = [Cell(size(count), count) for count in sizes]
            times = sizes[-1] / steps[-1]["model"] if steps[-1].get("model") else None
            often = Cell(f"{times:.1f}", times) if times else UNKNOWN
            rows.append((Cell(variant.label), *cells, often))
    if not rows:
        return None
    steps_taken = max(len(row) for row in rows) - 2
    return Grid(
        title=f"Kept after each task: {sequence.name}",
        columns=(
            "Method",
            *(str(k + 1) for k in range(steps_taken)),
            "Times the network",
        ),
        groups=(("", 1), ("After task", steps_taken), ("", 1)),
        rows=tuple(row for row in rows if len(row) == steps_taken + 2),
        caption="Everything that must be in memory or on disk for the next task, the network "
        "itself included; of what is only needed while a task is learned, that as well.",
    )


def searches(sequence: Sequence) -> Grid | None:
    """One row a run whose λ was searched for, with what was tried; None when there is none."""
    rows = []
    for variant in sequence.variants:
        for run in variant.runs:
            if run.search:
                tried = " → ".join(_tried(step) for step in run.search)
                chosen = "–" if run.strength is None else number(run.strength)
                rows.append((Cell(variant.label), Cell(str(run.seed)), Cell(chosen), Cell(tried)))
    if not rows:
        return None
    return Grid(
        title=f"How λ was chosen: {sequence.name}",
        columns=("Method", "Seed", "Chosen λ", "Tried"),
        rows=tuple(rows),
        caption="Without old data: from a high λ downwards, until accuracy on the new task's "
        "validation data is near enough to that of fine-tuning. In brackets that accuracy, ✓ where "
        "it was enough.",
    )


def _tried(step: Mapping[str, Any]) -> str:
    strength, accuracy = step["strength"], step["accuracy"]
    said = "–" if strength is None else number(strength)
    said += "" if accuracy is None else f" ({100 * accuracy:.1f})"
    return said + (" ✓" if step.get("accepted") else "")


def in_terminal(results: Results) -> Table:
    """The headline tables of all sequences as one rich table."""
    from rich.table import Table
    from rich.text import Text

    several = len(results.sequences) > 1
    if results.config.get("study") == "memory":
        grids = [grid for s in results.sequences if (grid := kept_at_each_step(s))]
    else:
        grids = [headline(sequence) for sequence in results.sequences]
    columns = grids[0].columns if grids else COLUMNS
    table = Table(caption_justify="left")
    table.title = (
        Text(visible(str(results.config["title"]))) if results.config.get("title") else None
    )
    table.caption = grids[0].caption.removesuffix(_BOLD) if grids else "Nothing was run yet."
    for place, column in enumerate((*(["Tasks"] if several else []), *columns)):
        table.add_column(column, justify="left" if place <= several else "right")
    for sequence, grid in zip(results.sequences, grids):
        table.add_section()
        for place, row in enumerate(grid.rows):
            tasks = [Text(visible(sequence.name) if place == 0 else "")] if several else []
            table.add_row(*tasks, *(_styled(cell) for cell in row))
    return table


def _styled(cell: Cell) -> Text:
    from rich.text import Text

    return Text(
        visible(cell.text), style={"best": "bold", "quiet": "dim", "bad": "red"}.get(cell.mark, "")
    )
