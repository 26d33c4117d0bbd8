"""The paper's Tables 2 and 3 in the paper's own layout, its numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retain.experiment.metrics import Spread
from retain.report.format import METHODS, method_name, percent, points
from retain.report.tables.grid import UNKNOWN, Cell, Grid
from retain.report.variants import Sequence, ShownResults, ShownRun, Variant
from retain.studies.paper import published

TABLES = ("table2", "table3")
NOT_RUN = (Cell("not run", mark="quiet"), Cell("not run", mark="quiet"))
NOTHING: Mapping[str, str] = {}
RowKey = tuple[str, str | None]  # method, and for Table 3 the data that Ω is computed on


def beside_the_paper(results: ShownResults) -> tuple[str, list[Grid]]:
    """What to know about the comparison, and the tables; ("", []) when it is no such study.

    The paper's numbers stand beside ours only where the data are the paper's: on stand-ins the
    table has the paper's layout and our numbers alone.
    """
    study, known = results.config.get("study"), published()
    pairs = [sequence for sequence in results.sequences if len(sequence.tasks) == 2]
    if results.config.get("stand_in") and study not in TABLES:
        return "", []
    if study not in TABLES:
        return (known[study]["note"], []) if study in ("sequence", "memory") else ("", [])
    if not pairs:
        return "", []
    table = known[study]
    if results.config.get("stand_in"):
        return (
            "The layout is the paper's, the data are not, so the paper's numbers are left out: "
            "they would not be comparable.",
            [_ours_alone(study, pairs)],
        )
    altered = set(results.config.get("altered") or {})
    if all(altered & set(pair.tasks) for pair in pairs):
        return (
            "The layout is the paper's, but the data are not as they were published, so the "
            "paper's numbers are left out: they would not be comparable.",
            [_ours_alone(study, pairs)],
        )
    skipped = {str(name): str(why) for name, why in (results.config.get("skipped") or {}).items()}
    return (
        f"Of each method the first row is ours, the second the paper's ({table['source']}), the "
        "third ours minus the paper's.",
        [_side_by_side(study, table, pairs, altered, skipped)],
    )


_CAPTION = (
    "First task: accuracy on it after learning the second, in percent, and in brackets how far "
    "that is from right after learning it, in points. Second task: accuracy on it."
)


def _ours_alone(study: str, pairs: list[Sequence]) -> Grid:
    keys = _keys(study, pairs)
    rows = tuple(
        (Cell(_name(key)), *(cell for pair in pairs for cell in _cells(_ours(key, pair))))
        for key in keys
    )
    return _grid(study, [pair.tasks for pair in pairs], rows, heads=1)


def _side_by_side(
    study: str,
    table: Mapping[str, Any],
    pairs: list[Sequence],
    altered: set[str],
    skipped: Mapping[str, str],
) -> Grid:
    by_tasks = {pair.tasks: pair for pair in pairs}
    theirs = {(row["method"], row.get("importance_on")): row["values"] for row in table["rows"]}
    columns = [tuple(tasks) for tasks in table["sequences"]]
    columns += [tasks for tasks in by_tasks if tasks not in columns]
    rows = []
    for key in _keys(study, pairs, list(theirs)):
        own = [_ours(key, by_tasks[tasks]) if tasks in by_tasks else None for tasks in columns]
        # The paper has one IMM, and which of the two it is is not recorded: it stands beside both.
        values = theirs.get(("imm", key[1]) if key[0].startswith("imm") else key)
        cells = [
            cell
            for tasks, numbers in zip(columns, own)
            for cell in (NOT_RUN if " → ".join(tasks) in skipped else _cells(numbers))
        ]
        rows.append((Cell(_name(key)), Cell("ours"), *cells))
        if values:
            known = [*values, *[None] * (len(columns) - len(values))]
            paper = [None if altered & set(t) else one for t, one in zip(columns, known)]
            again, quiet = Cell(_name(key), mark="repeat"), Cell("paper", mark="quiet")
            rows.append((again, quiet, *(c for p in paper for c in _paper_cells(p))))
            pairwise = [c for o, p in zip(own, paper) for c in _difference(o, p)]
            rows.append((again, Cell("difference"), *pairwise))
    return _grid(study, columns, tuple(rows), heads=2, skipped=skipped)


def _grid(
    study: str,
    columns: list[tuple[str, ...]],
    rows: tuple[tuple[Cell, ...], ...],
    heads: int,
    skipped: Mapping[str, str] = NOTHING,
) -> Grid:
    names = ("Method", "Whose")[:heads]
    return Grid(
        title=f"The paper's Table {study[-1]}",
        columns=(*names, *("first task, %", "second task, %") * len(columns)),
        groups=(("", heads), *((" → ".join(tasks), 2) for tasks in columns)),
        rows=rows,
        caption=_CAPTION + "".join(f" Not run: {name}. {why}" for name, why in skipped.items()),
        heads=heads,
    )


def _keys(study: str, pairs: list[Sequence], published: list[RowKey] | None = None) -> list[RowKey]:
    """What has a row: what we ran and what the paper has, in the order of the paper."""
    ran = [
        (v.method, v.runs[0].importance_on if study == "table3" else None)
        for pair in pairs
        for v in pair.variants
    ]
    in_paper = [key for key in published or [] if key[0] != "imm" or not _any_imm(ran)]
    order = {method: place for place, method in enumerate(METHODS)}
    data = {"train": 0, "test": 1, "train+test": 2}
    order["imm"] = order["imm-mean"]
    return sorted(
        dict.fromkeys([*ran, *in_paper]),
        key=lambda key: (order.get(key[0], len(order)), data.get(key[1] or "", 3)),
    )


def _any_imm(ran: list[RowKey]) -> bool:
    return any(method.startswith("imm-") for method, _ in ran)


def _name(key: RowKey) -> str:
    method = "IMM" if key[0] == "imm" else method_name(key[0])
    return f"{method}, Ω on {key[1]}" if key[1] else method


Numbers = tuple[Spread | None, Spread | None, Spread | None]  # first, drop, second


def _ours(key: RowKey, pair: Sequence) -> Numbers | None:
    """First task at the end, its change, second task; None when it was not run or not finished."""
    found = [
        variant
        for variant in pair.one_per_method()
        if variant.method == key[0] and key[1] in (None, variant.runs[0].importance_on)
    ]
    return _numbers(found[0]) if found else None


def _numbers(variant: Variant) -> Numbers:
    def change(run: ShownRun) -> float | None:
        now, then = run.at(1, 0), run.at(0, 0)
        return None if now is None or then is None else now - then

    return variant.at(1, 0), variant.over(change), variant.at(1, 1)


def _cells(numbers: Numbers | None) -> tuple[Cell, Cell]:
    if numbers is None:
        return UNKNOWN, UNKNOWN
    first, drop, second = numbers
    change = f" ({points(drop.mean)})" if drop else ""
    # The paper's two digits for one number; with a spread the second digit says nothing.
    digits = 2 if first is None or first.sd is None else 1
    return Cell(percent(first, digits) + change), Cell(percent(second, digits))


def _paper_cells(values: Mapping[str, float] | None) -> tuple[Cell, Cell]:
    if values is None:
        return UNKNOWN, UNKNOWN
    first = f"{values['first']:.2f} ({points(values['drop'] / 100)})"
    return Cell(first, mark="quiet"), Cell(f"{values['second']:.2f}", mark="quiet")


def _difference(numbers: Numbers | None, values: Mapping[str, float] | None) -> tuple[Cell, Cell]:
    if numbers is None or values is None:
        return UNKNOWN, UNKNOWN
    first, drop, second = numbers
    if first is None or drop is None or second is None:
        return UNKNOWN, UNKNOWN
    return (
        Cell(
            f"{points(first.mean - values['first'] / 100, 2)} "
            f"({points(drop.mean - values['drop'] / 100)})"
        ),
        Cell(points(second.mean - values["second"] / 100, 2)),
    )
