"""`retain study` and `retain datasets` as they are called."""

from __future__ import annotations

import json
import re

import pytest

from retain.errors import FileError
from retain.studies import carry_out
from retain.tasks.paper import PAPER_SETS
from tests.cli.test_commands import refused, retain
from tests.studies.test_carry_out import tiny
from tests.tasks.miniatures import write_miniatures


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    return write_miniatures(tmp_path_factory.mktemp("miniatures"))


def flat(text):
    return re.sub(r"\s+", " ", text)


def test_a_study_from_data_to_report_and_again(tmp_path):
    out = tmp_path / "out"
    result = retain("study", "adaptation", "--data", "digits", "--quick", "--epochs", 1,
                    "--adapt-to", "3,4", "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "With Ω on 3 and 4 alone" in result.stdout
    page = (out / "report.html").read_text()
    assert "Stand-in data." in page
    assert "Quick run." in page
    (out / "report.html").unlink()
    (out / "results.json").unlink()
    assert retain("report", out).exit_code == 0
    assert (out / "report.html").read_text() == page
    assert retain("study", "adaptation", "--resume", "--out", out).exit_code == 0


def test_a_study_is_resumed_by_its_own_name(tmp_path):
    carry_out(tiny(parts=1), tmp_path, progress=False)
    before = (tmp_path / "results.json").read_bytes()
    result = retain("study", "table2", "--resume", "--out", tmp_path)
    assert refused(result, "holds the study table3, not table2", "retain study table3 --resume")
    result = retain("run", "--resume", "--out", tmp_path)
    assert refused(result, "holds the study table3", "retain study table3 --resume")
    assert "remove" not in result.stderr
    assert (tmp_path / "results.json").read_bytes() == before


def test_memory_shows_bytes_and_no_accuracies(tmp_path):
    result = retain("study", "memory", "--data", "digits", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "Times" in result.stdout
    assert " kB " in result.stdout
    assert "Forgetting" not in result.stdout
    page = (tmp_path / "report.html").read_text()
    assert "times the network's own bytes" in page.replace("&#39;", "'")
    assert "Accuracy matrices" not in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tabel2", "--data", "digits"], "Did you mean 'table2'"),
        (["table2"], "On which data?"),
        (["table2", "--data", "/nowhere"], "is not a folder"),
        (["table2", "--data", "digits", "--seeds", "a"], "expected whole numbers"),
        (["table2", "--data", "digits", "--model", "mpl"], "Did you mean 'mlp'"),
        (["table2", "--data", "digits", "--device", "tpu9"], "cannot be used"),
        (["table2", "--data", "digits", "--weights", "/nowhere.pt"], "/nowhere.pt"),
        (["adaptation", "--data", "digits", "--adapt-to", "ten"], "no such class"),
        (["table2", "--resume"], "no study to resume"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(tmp_path, given, message):
    assert refused(retain("study", *given, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_nothing_there(tmp_path):
    result = retain("study", "table2", "--data", tmp_path, "--out", tmp_path / "out")
    assert refused(result, "Nothing of table2", "Oxford Flowers 102", "Get it from")


def test_datasets_says_what_each_needs():
    result = retain("datasets")
    assert result.exit_code == 0, result.output
    for data in PAPER_SETS.values():
        assert data.name in result.stdout
        assert str(data.expected.train) in result.stdout


def test_datasets_says_what_is_there_and_what_is_wrong(miniatures):
    result = retain("datasets", "--data", miniatures, "--images")
    assert result.exit_code == 0, result.output
    assert "missing" not in result.stdout
    assert "3 / 102" in result.stdout
    assert "3 classes, expected 102" in result.stdout


def test_datasets_of_a_broken_copy(tmp_path):
    write_miniatures(tmp_path)
    (tmp_path / "flowers-102" / "setid.mat").unlink()
    image = next((tmp_path / "CUB_200_2011" / "images").rglob("*.jpg"))
    image.write_bytes(image.read_bytes()[:100])
    result = retain("datasets", "--data", tmp_path, "--sets", "flowers,birds", "--images")
    assert result.exit_code == 0, result.output
    assert "broken" in result.stdout
    assert "setid.mat is missing" in flat(result.stdout)
    assert f"{image.name}" in flat(result.stdout)


def test_datasets_that_are_not_there_say_how_to_get_them(tmp_path):
    result = retain("datasets", "--data", tmp_path, "--sets", "scenes")
    assert "missing" in result.stdout
    assert "Get it from" in flat(result.stdout)


def test_download_goes_where_torchvision_goes_and_failures_are_told(tmp_path, monkeypatch):
    asked = []

    def get(name, root):
        asked.append(name)
        raise FileError(f"no network for {name} in {root}")

    monkeypatch.setattr("retain.cli.datasets.download_set", get)
    result = retain("datasets", "--data", tmp_path, "--sets", "scenes,svhn", "--download")
    assert result.exit_code == 0, result.output
    assert asked == ["svhn"]  # torchvision does not have the scenes
    assert "no network for svhn" in flat(result.stderr)


def test_datasets_refuses_what_is_not_there(tmp_path):
    assert refused(retain("datasets", "--sets", "bird"), "Did you mean 'birds'")
    assert refused(retain("datasets", "--data", tmp_path / "no"), "is not a folder")
    assert refused(retain("datasets", "--download"), "Which folder?")


@pytest.mark.slow
def test_alexnet_goes_through_all_eight_miniatures(miniatures, tmp_path):
    result = retain("study", "sequence", "--data", miniatures, "--quick", "--weights", "none",
                    "--out", tmp_path)  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["config"]["model"] == "alexnet"
    assert any("untrained weights" in one for one in content["config"]["departures"])
    assert len(content["runs"]) == 4
    for run in content["runs"]:
        assert run["tasks"] == list(PAPER_SETS)
        assert None not in run["accuracy"][-1]
    page = (tmp_path / "report.html").read_text()
    for said in ("Quick run.", "untrained weights", "Not the data as published."):
        assert said in page
