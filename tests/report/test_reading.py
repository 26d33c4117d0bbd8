"""results.json as it may come: whole, cut off, too new, edited by hand, unfinished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retain.errors import FileError
from retain.experiment.disk import signed
from retain.report.variants import read

from . import made_up

Edit = Callable[[dict[str, Any]], Any]


def test_a_dict_a_file_and_its_folder_say_the_same(tmp_path: Path) -> None:
    made = made_up.results()
    file = tmp_path / "results.json"
    file.write_text(json.dumps(made))
    runs = read(made).runs
    assert read(file).runs == read(tmp_path).runs == runs
    assert [run.method for run in runs] == [run["method"] for run in made["runs"]]
    assert runs[0].at(1, 0) == made["runs"][0]["accuracy"][1][0]
    assert runs[0].at(0, 1) is None


def test_every_kind_of_made_up_results_is_accepted() -> None:
    for made in (made_up.sweep(), made_up.unfinished(), made_up.with_failure(), made_up.table3()):
        assert len(read(made).runs) == len(made["runs"])


def test_the_least_that_the_schema_promises_is_enough() -> None:
    run = {"method": "mas", "seed": 0, "tasks": ["a", "b"], "accuracy": [[0.9], [0.8, 0.7]]}
    content = {
        "schema": 1,
        "versions": {},
        "config": {},
        "runs": [{**run, "average_accuracy": 0.75}],
    }
    assert read(content).runs[0].average_accuracy == 0.75


def test_a_folder_without_results_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"There is no .*results\.json\. Give the folder"):
        read(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, 1000, 3000, -2])
def test_a_file_that_was_cut_off_says_so(kept: int, tmp_path: Path) -> None:
    text = json.dumps(made_up.results(), indent=1)
    (tmp_path / "results.json").write_text(text[:kept])
    with pytest.raises(FileError, match="ends in the middle") as caught:
        read(tmp_path)
    assert "remove it: what it held can be computed again" in str(caught.value)
    assert "--resume" not in str(caught.value)


@pytest.mark.parametrize("text", ["# a note\n{}", "{'schema': 1}"])
def test_a_file_that_is_not_json_says_where(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(FileError, match=r"is not JSON \(line 1, column"):
        read(tmp_path)


def test_a_file_that_is_not_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(FileError, match="cannot be read as text"):
        read(tmp_path)


def test_a_newer_schema_asks_for_an_upgrade() -> None:
    with pytest.raises(FileError, match=r"has schema 2, but this version of retain reads .* 1"):
        read({**made_up.results(), "schema": 2})


def test_another_kind_of_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[1, 2]")
    with pytest.raises(FileError, match="holds a list"):
        read(tmp_path)


def test_a_file_whose_digest_is_another_is_damaged_or_was_written_anew(tmp_path: Path) -> None:
    file, whole = tmp_path / "results.json", signed(made_up.results())
    file.write_bytes(whole)
    expected = read(file).runs
    damaged = whole.replace(b'"train_seconds": ', b'"train_seconds": 1', 1)
    assert damaged != whole
    file.write_bytes(damaged)
    with pytest.raises(
        FileError, match=r"is damaged, or was edited: its sha256 .* remove its last"
    ):
        read(file)
    file.write_text(json.dumps(json.loads(damaged)))  # by another program
    with pytest.warns(UserWarning, match="was changed after it was written"):
        assert read(file).runs != expected
    edited = json.loads(damaged)
    del edited["sha256"]
    file.write_text(json.dumps(edited, indent=1))
    assert read(file).runs != expected


EDITS: dict[str, Edit] = {
    "schema should be 1": lambda c: c.pop("schema"),
    "versions is missing": lambda c: c.pop("versions"),
    "config should be an object": lambda c: c.update(config=3),
    "config.study should be a word": lambda c: c["config"].update(study=["table2"]),
    "config.methods should be a list": lambda c: c["config"].update(methods="mas"),
    "config.skipped should be an object": lambda c: c["config"].update(skipped=["birds"]),
    "runs is missing": lambda c: c.pop("runs"),
    "runs[0] should be an object, but is 'x'": lambda c: c["runs"].insert(0, "x"),
    "runs[1].method is missing": lambda c: c["runs"][1].pop("method"),
    "runs[1].seed should be a whole number": lambda c: c["runs"][1].update(seed=1.5),
    "runs[1].status should be one of": lambda c: c["runs"][1].update(status="fine"),
    "runs[1].tasks should be a list": lambda c: c["runs"][1].update(tasks="0-1"),
    "runs[1].accuracy is missing": lambda c: c["runs"][1].pop("accuracy"),
    "runs[1].accuracy[2][0] should be a fraction from 0 to 1, not percent, but is 98": (
        lambda c: c["runs"][1]["accuracy"][2].__setitem__(0, 98)
    ),
    "runs[1].accuracy[0][0] should be a finite number": (
        lambda c: c["runs"][1]["accuracy"][0].__setitem__(0, float("nan"))
    ),
    "runs[1].accuracy[0] has accuracies on tasks that were not learned yet": (
        lambda c: c["runs"][1]["accuracy"][0].__setitem__(3, 0.5)
    ),
    "runs[1].accuracy should end with the accuracies on all 5 tasks": (
        lambda c: c["runs"][1]["accuracy"].pop()
    ),
    "runs[1].average_accuracy is 0.999, but its accuracy matrix gives": (
        lambda c: c["runs"][1].update(average_accuracy=0.999)
    ),
    "runs[1].average_forgetting is 0, but its accuracy matrix gives": (
        lambda c: c["runs"][1].update(average_forgetting=0.0)
    ),
    "runs[1].average_accuracy is missing": lambda c: c["runs"][1].pop("average_accuracy"),
    "runs[1].train_seconds should be a number": (
        lambda c: c["runs"][1].update(train_seconds="long")
    ),
    "runs[1].memory_bytes_by_task[0].model should be 0 or more": (
        lambda c: c["runs"][1]["memory_bytes_by_task"][0].update(model=-1)
    ),
    "runs[3].importance_by_layer.backbone.0.weight.quantiles should be 7, but are 2": (
        lambda c: c["runs"][3]["importance_by_layer"]["backbone.0.weight"].update(quantiles=[1, 2])
    ),
    "runs[3].importance_by_layer.backbone.0.weight.quantiles[6] should be 1e+300 or less": (
        lambda c: c["runs"][3]["importance_by_layer"]["backbone.0.weight"].update(
            quantiles=[0, 0, 0, 1, 1, 2, 1.7e308]
        )
    ),
    "runs[1].strength_search[0].accuracy should be a fraction": (
        lambda c: c["runs"][1].update(strength_search=[{"strength": 1, "accuracy": 7}])
    ),
}


@pytest.mark.parametrize("problem", EDITS)
def test_what_was_edited_by_hand_is_named(problem: str) -> None:
    content = json.loads(json.dumps(made_up.results()))
    EDITS[problem](content)
    with pytest.raises(FileError) as caught:
        read(content)
    assert f"\n  - {problem}" in str(caught.value)


def test_all_problems_are_told_at_once_up_to_a_point() -> None:
    content = made_up.results()
    for run in content["runs"]:
        del run["method"]
        run["seed"] = None
    with pytest.raises(FileError) as caught:
        read(content)
    assert str(caught.value).count("\n  - ") == 2 * len(content["runs"])
    content["runs"] *= 3
    with pytest.raises(FileError, match="and 34 more"):
        read(content)
