"""The paper's numbers: held as they are, beside ours, and never mixed up with ours."""

from __future__ import annotations

import pytest

from retain.report.tables.beside_the_paper import beside_the_paper, published
from retain.report.variants import read

from . import made_up


def test_the_data_file_is_whole_and_names_its_source() -> None:
    content = published()
    for table, rows in (("table2", 7), ("table3", 6)):
        assert "1711.09601" in content[table]["source"]
        assert len(content[table]["rows"]) == rows
        for row in content[table]["rows"]:
            assert len(row["values"]) == len(content[table]["sequences"]) == 4
            assert all(value["drop"] < 0 < value["first"] < 100 for value in row["values"])
    mas = next(row for row in content["table2"]["rows"] if row["method"] == "mas")
    assert mas["values"][0] == {"first": 53.24, "drop": -0.4, "second": 55.0}
    local = content["table3"]["rows"][5]
    assert (local["method"], local["importance_on"]) == ("local-mas", "train+test")
    assert local["values"][3] == {"first": 76.41, "drop": -1.7, "second": 57.91}
    assert len(content["sequence"]["tasks"]) == 8


def test_tables_2_and_3_of_the_paper_agree_where_they_say_the_same() -> None:
    content = published()
    in_table_2 = next(row for row in content["table2"]["rows"] if row["method"] == "mas")
    in_table_3 = content["table3"]["rows"][0]
    assert in_table_3["importance_on"] == "train"
    assert in_table_2["values"] == in_table_3["values"]


def test_table_2_has_ours_the_paper_s_and_the_difference() -> None:
    made = made_up.table2()
    made["runs"] = [run for run in made["runs"] if run["method"] == "mas"][:1]
    run = made["runs"][0]
    run["accuracy"] = [[0.5400, None], [0.5350, 0.5600]]
    run.update(made_up.measures(run["accuracy"]))
    lead, (grid,) = beside_the_paper(read(made))
    assert "Table 2" in lead
    assert grid.groups[1] == ("birds → scenes", 2)
    rows = {(r[0].text, r[1].text): [cell.text for cell in r[2:]] for r in grid.rows}
    assert rows["MAS", "ours"][:2] == ["53.50 (−0.5)", "56.00"]
    assert rows["MAS", "paper"][:2] == ["53.24 (−0.4)", "55.00"]
    assert rows["MAS", "difference"][:2] == ["+0.26 (−0.1)", "+1.00"]
    assert rows["MAS", "ours"][2:] == ["–"] * 6  # sequences that were not run
    assert rows["SI", "ours"] == ["–"] * 8  # a method that was not run
    assert rows["SI", "paper"][6:] == ["76.61 (−1.5)", "57.53"]


def test_the_paper_s_one_imm_stands_beside_both_of_ours() -> None:
    made = made_up.results((), study="table2")
    for method in ("imm-mean", "imm-mode"):
        made["runs"].append(made_up.run(method, ("birds", "scenes"), best=0.56))
    _, (grid,) = beside_the_paper(read(made))
    paper = [row for row in grid.rows if row[1].text == "paper" and row[0].text.startswith("IMM")]
    assert [row[0].text for row in paper] == ["IMM (mean)", "IMM (mode)"]
    assert paper[0][2].text == paper[1][2].text == "51.51 (−2.1)"
    del made["runs"][:]
    made["runs"].append(made_up.run("mas", ("birds", "scenes"), best=0.56))
    _, (grid,) = beside_the_paper(read(made))
    assert "IMM" in {row[0].text for row in grid.rows}


def test_table_3_tells_the_data_of_omega_apart() -> None:
    made = made_up.results((), study="table3")
    for data in ("train+test", "train", "test"):
        run = made_up.run("mas", ("flowers", "scenes"), best=0.7)
        made["runs"].append({**run, "importance_on": data})
    _, (grid,) = beside_the_paper(read(made))
    names = [row[0].text for row in grid.rows if row[1].text == "ours"]
    assert names[:3] == ["MAS, Ω on train", "MAS, Ω on test", "MAS, Ω on train+test"]
    assert names[3] == "l-MAS, Ω on train"  # the paper's, which we have not run


def test_stand_ins_are_never_beside_the_paper_s_numbers() -> None:
    lead, (grid,) = beside_the_paper(read(made_up.table3()))
    assert "not be comparable" in lead
    assert "Whose" not in grid.columns
    text = grid.csv()
    for row in published()["table3"]["rows"]:
        assert all(f"{value['first']:.2f}" not in text for value in row["values"])


def test_what_was_not_run_and_what_is_not_comparable_is_in_the_table() -> None:
    _, (grid,) = beside_the_paper(read(made_up.table2_in_part()))
    rows = {(r[0].text, r[1].text): [cell.text for cell in r[2:]] for r in grid.rows}
    assert rows["MAS", "ours"][2:4] == ["not run", "not run"]
    assert "scenes → birds. MIT Indoor Scenes 67: not found in data." in grid.caption
    assert rows["MAS", "paper"][:2] == ["53.24 (−0.4)", "55.00"]
    assert rows["MAS", "paper"][4:] == ["–"] * 4  # flowers are not as they were published
    assert rows["MAS", "difference"][4:] == ["–"] * 4
    assert rows["MAS", "ours"][4] != "–"


def test_data_that_are_all_altered_are_not_beside_the_paper_s_numbers() -> None:
    made = made_up.table2_in_part()
    made["config"]["altered"] = {"birds": "3 of 200 classes"}
    lead, (grid,) = beside_the_paper(read(made))
    assert "not as they were published" in lead
    assert "Whose" not in grid.columns


@pytest.mark.parametrize("study", ["sequence", "memory"])
def test_a_study_without_known_numbers_says_so(study: str) -> None:
    lead, grids = beside_the_paper(read(made_up.results(study=study)))
    assert "not recorded" in lead
    assert grids == []


def test_other_runs_are_not_compared_with_the_paper() -> None:
    assert beside_the_paper(read(made_up.results())) == ("", [])
