"""The table that says how it ended: each method's final accuracy and what it forgot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from retain.legible import visible
from retain.report.format import BOUNDS, many, percent
from retain.report.tables.cost import kept_at_each_step
from retain.report.tables.grid import Cell, Grid
from retain.report.variants import Sequence, ShownResults, Variant

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

# measure, column, and which end of it is the good one
SHOWN: tuple[tuple[str, str, Callable[..., float]], ...] = (
    ("average_accuracy", "Final accuracy, %", max),
    ("average_forgetting", "Forgetting, points", min),
    ("plasticity", "Accuracy when learned, %", max),
)
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


def in_terminal(results: ShownResults) -> Table:
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


def drawn(grid: Grid) -> Table:
    """One grid as a rich table, with what it says about itself above and below."""
    from rich.table import Table

    table = Table(title=visible(grid.title), caption=grid.caption, caption_justify="left")
    for place, column in enumerate(grid.columns):
        table.add_column(column, justify="left" if place < grid.heads else "right")
    for row in grid.rows:
        table.add_row(*map(_styled, row))
    return table


def _styled(cell: Cell) -> Text:
    from rich.text import Text

    return Text(
        visible(cell.text), style={"best": "bold", "quiet": "dim", "bad": "red"}.get(cell.mark, "")
    )
