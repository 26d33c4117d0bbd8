"""What Ω on some classes keeps and gives up, in the table, the sentence and the page."""

from __future__ import annotations

from pathlib import Path

import pytest

import retain.report
from retain.report.tables.by_class import adapted, said
from retain.report.variants import read

from . import made_up

CHOSEN = ("0", "1")


def test_the_table_tells_where_it_matters_from_elsewhere() -> None:
    (sequence,) = read(made_up.adaptation_study()).sequences
    grid = adapted(sequence, CHOSEN)
    assert grid is not None
    rows = {row[0].text: [cell.value for cell in row[1:5]] for row in grid.rows}
    assert list(rows) == ["FineTune", "MAS, Ω on all classes", "MAS, Ω on 0 and 1"]
    assert rows["MAS, Ω on 0 and 1"] == pytest.approx([0.985, -0.005, 0.905, -0.085])
    assert rows["MAS, Ω on all classes"] == pytest.approx([0.965, -0.025, 0.955, -0.035])


def test_the_sentence_says_what_was_given_up() -> None:
    sentence = said(read(made_up.adaptation_study()))
    assert "With Ω on 0 and 1 alone, MAS changed by −0.5 ± 0.7 points on them" in sentence
    assert "by −8.5 ± 0.7 on the other classes" in sentence
    assert "with Ω on all classes by −2.5 ± 0.7 and −3.5 ± 0.7" in sentence


def test_without_both_omegas_there_is_no_sentence() -> None:
    made = made_up.adaptation_study()
    made["runs"] = [run for run in made["runs"] if not run["importance_classes"]]
    assert said(read(made)) == ""
    assert said(read(made_up.results())) == ""


def test_the_two_omegas_are_never_averaged_and_make_no_curve_over_strengths(
    tmp_path: Path,
) -> None:
    made = made_up.adaptation_study()
    (sequence,) = read(made).sequences
    assert [len(variant.runs) for variant in sequence.variants] == [2, 2, 2]
    written = retain.report.write(made, tmp_path)
    assert {path.name for path in written} >= {"adaptation.svg", "adaptation.png"}
    assert not any("tradeoff" in path.name for path in written)


def test_memory_is_told_without_accuracies(tmp_path: Path) -> None:
    made = made_up.memory_study()
    assert "After 8 tasks MAS keeps 3.0 times" in retain.report.summary(made)
    page = retain.report.write(made, tmp_path)[0].read_text()
    assert "Times the network" in page
    assert "Final accuracy" not in page
