"""Tables: what their cells say on the page, in a terminal, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
from typing import Any

from rich.console import Console

import retain.report
from retain.report.tables.cost import cost, searches
from retain.report.tables.grid import Cell, Grid
from retain.report.tables.outcome import headline
from retain.report.variants import read

from . import made_up


def rows(grid: Grid) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in grid.rows}


def first(made: dict[str, Any]) -> Any:
    return read(made).sequences[0]


def in_terminal(made: dict[str, Any], width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(retain.report.table(made))
    return console.export_text()


def test_a_row_is_the_mean_and_spread_over_its_seeds() -> None:
    made = made_up.results(("mas",), seeds=(0, 1))
    for run, lost in zip(made["runs"], (0.0, 0.2)):
        run["tasks"], run["accuracy"] = ["a", "b"], [[0.9, None], [0.9 - lost, 0.8]]
        run.update(made_up.measures(run["accuracy"]))
    assert rows(headline(first(made)))["MAS"] == [
        "80.00 ± 7.07",  # of 85 and 75
        "10.00 ± 14.14",  # of 0 and 20
        "85.00 ± 0.00",
        "2",
    ]


def test_one_seed_shows_no_spread_and_says_so() -> None:
    grid = headline(first(made_up.results(("mas",), seeds=(4,))))
    assert "±" not in "".join(rows(grid)["MAS"])
    assert "n = 1" in grid.caption


def test_the_best_is_marked_and_bounds_are_not() -> None:
    grid = headline(first(made_up.results(made_up.METHODS)))
    marked = {row[0].text: [cell.mark for cell in row[1:]] for row in grid.rows}
    assert marked["MAS"][:2] == ["best", "best"]
    assert "best" not in marked["FineTune"] + marked["Joint"]
    alone = headline(first(made_up.results(("finetune", "mas"))))
    assert not any(cell.mark == "best" for row in alone.rows for cell in row)
    assert "Bold" in grid.caption
    assert "Bold" not in alone.caption


def test_methods_stand_in_the_paper_s_order_whatever_ran_first() -> None:
    grid = headline(first(made_up.results(("mas", "si", "joint", "finetune"))))
    assert [row[0].text for row in grid.rows] == ["FineTune", "Joint", "SI", "MAS"]


def test_what_failed_or_still_runs_has_its_row() -> None:
    failed = rows(headline(first(made_up.with_failure())))
    assert failed["EWC"] == ["–", "–", "–", "2 failed"]
    assert failed["MAS"][3] == "1, 1 failed"
    running = rows(headline(first(made_up.unfinished())))
    assert running["MAS"] == ["–", "–", "–", "1 running (2 of 5 tasks)"]


def test_a_sweep_has_a_row_for_each_strength_in_order() -> None:
    grid = headline(first(made_up.sweep(("mas",))))
    names = [row[0].text for row in grid.rows if row[0].text.startswith("MAS")]
    assert names == [f"MAS, λ = {value}" for value in ("0.01", "0.1", "1", "10", "100")]


def test_forms_and_data_are_named_only_where_they_differ() -> None:
    made = made_up.results(("mas", "ewc"), seeds=(0,))
    assert "EWC" in rows(headline(first(made)))
    made["runs"].append({**made["runs"][0], "form": "gradient"})
    assert {"MAS, proximal", "MAS, gradient", "EWC"} == set(rows(headline(first(made))))
    assert "MAS, Ω on train+test" in rows(headline(first(made_up.table3())))


def test_strengths_that_were_searched_for_are_one_row() -> None:
    made = made_up.results(("mas",), seeds=(0, 1))
    for run, chosen in zip(made["runs"], (1.0, 2.0)):
        run["strength"] = chosen
        run["strength_search"] = [
            {"strength": 4.0, "accuracy": 0.5, "accepted": False},
            {"strength": chosen, "accuracy": 0.9, "accepted": True},
        ]
    assert rows(headline(first(made)))["MAS"][3] == "2"
    grid = searches(first(made))
    assert grid is not None
    assert [cell.text for cell in grid.rows[1]] == ["MAS", "1", "2", "4 (50.0) → 2 (90.0) ✓"]


def test_cost_has_seconds_and_bytes_and_leaves_out_what_is_not_known() -> None:
    made = made_up.results(("finetune", "mas"), seeds=(0,))
    made["runs"][1].update(
        train_seconds=75.0, memory_bytes_by_task=[{"model": 1500, "anchor": 500}]
    )
    for name in ("train_seconds", "importance_seconds", "evaluation_seconds"):
        made["runs"][0][name] = None
    made["runs"][0]["memory_bytes_by_task"] = made["runs"][0]["memory_bytes"] = None
    grid = cost(first(made))
    assert grid is not None
    assert list(rows(grid)) == ["MAS"]
    assert rows(grid)["MAS"][0] == "1 min 15 s"
    assert rows(grid)["MAS"][3] == "2 kB"


def test_the_terminal_shows_the_same_numbers() -> None:
    made = made_up.results()
    shown = in_terminal(made)
    for name, cells in rows(headline(first(made))).items():
        line = next(line for line in shown.splitlines() if f" {name} " in line)
        assert all(cell in line for cell in cells)
    assert "3 seeds" in shown


def test_the_terminal_names_the_tasks_when_there_are_several_sequences() -> None:
    shown = in_terminal(made_up.table2())
    assert "birds → scenes" in shown
    assert "flowers → birds" in shown
    assert "Nothing was run yet" in in_terminal(made_up.results(()))


def test_markup_in_a_name_is_only_text() -> None:
    made = made_up.results(("mas",), seeds=(0,))
    made["runs"][0]["method"] = "[red]mas[/red]"
    assert "[red]mas[/red]" in in_terminal(made)


GRID = Grid(
    "t",
    ("Method", "Whose", "first, %", "second, %"),
    (
        (Cell("A & B"), Cell("ours"), Cell("1.5 ± 0.1", 1.5, "best"), Cell("−2")),
        (Cell("A & B", mark="repeat"), Cell("paper"), Cell("λ → Ω"), Cell("–")),
    ),
    heads=2,
    groups=(("", 2), ("x_y", 2)),
)


def test_csv_is_read_back_with_full_names() -> None:
    read_back = list(csv.reader(io.StringIO(GRID.csv())))
    assert read_back[0] == ["Method", "Whose", "x_y: first, %", "x_y: second, %"]
    assert read_back[1] == ["A & B", "ours", "1.5 ± 0.1", "−2"]
    assert read_back[2][0] == "A & B"


def test_latex_escapes_and_aligns() -> None:
    latex = GRID.latex()
    assert "\\begin{tabular}{llrr}" in latex
    assert "\\multicolumn{2}{c}{x\\_y}" in latex
    assert "A \\& B & ours & \\textbf{1.5 $\\pm$ 0.1} & $-$2 \\\\" in latex
    assert "\n & paper & $\\lambda$ $\\rightarrow$ $\\Omega$ & -- \\\\" in latex
