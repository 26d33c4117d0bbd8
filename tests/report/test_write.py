"""The report as a user calls it: what is written, and where."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import retain.report
from retain.errors import FileError, InputError, MissingExtraError
from retain.report.__main__ import main

from . import made_up

SMALL = made_up.results(("finetune",), ("a", "b"), seeds=(0,))


def test_page_and_figures_are_written_beside_the_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(SMALL))
    written = retain.report.write(tmp_path)
    assert written[0] == tmp_path / "report.html"
    assert {path.parent for path in written[1:]} == {tmp_path / "figures"}
    assert {path.suffix for path in written[1:]} == {".svg", ".png"}
    assert all(path.stat().st_size > 500 for path in written)


def test_a_dict_needs_a_place_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out="):
        retain.report.write(SMALL)
    assert (tmp_path / "report.html") in retain.report.write(SMALL, tmp_path)


def test_an_out_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FileError, match=r"cannot be written into .*taken"):
        retain.report.write(SMALL, tmp_path / "taken")


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    first = retain.report.write(SMALL, tmp_path / "a")
    second = retain.report.write(SMALL, tmp_path / "b")
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]


def test_what_images_were_made_into_is_told_and_paths_may_break(tmp_path: Path) -> None:
    asked = {"image_size": 96, "samples_per_class": 50, "augmentation": "crop-flip"}
    results = made_up.results(("mas",), ("a", "b"), seeds=(0,), model="my/<net>.py:made", **asked)
    page = retain.report.write(results, tmp_path)[0].read_text()
    assert "<dd>96 × 96 pixels, 50 of each class, random crops and flips</dd>" in page
    assert "<dd>my/<wbr>&lt;net&gt;.py:<wbr>made</dd>" in page


def test_nothing_outside_the_page_is_asked_for(tmp_path: Path) -> None:
    page = retain.report.write(SMALL, tmp_path)[0].read_text()
    assert "http:" not in page.replace("http://www.w3.org/", "")
    assert "https:" not in page
    assert "src=" not in page


def test_text_from_the_results_is_escaped(tmp_path: Path) -> None:
    page = retain.report.write(made_up.with_failure(), tmp_path)[0].read_text()
    assert "&lt;script&gt;" in page
    assert "4-5 <script>" not in page


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")))


def test_the_page_says_what_was_run_on_what_and_with_what(tmp_path: Path) -> None:
    made = made_up.results(("finetune", "mas"), seeds=(0, 7), model="resnet18", lr=0.01)
    said = text_of(retain.report.write(made, tmp_path)[0])
    for fact in ("FineTune and MAS on digits", "resnet18", "learning rate 0.01", "4 epochs"):
        assert fact in said
    for fact in ("0, 7 (n = 2)", "torch 2.14.1", "Task-incremental", "MAS 1"):
        assert fact in said
    assert retain.report.summary(made) in said


def test_what_must_be_known_first_is_on_the_page_and_on_every_picture(tmp_path: Path) -> None:
    notices = ("Quick run.", "Stand-in data.", "SAMPLE.")
    corner = "sample, quick run, stand-in data"
    config = {"quick": True, "stand_in": "digits", "sample": "invented"}
    marked = retain.report.write({**SMALL, "config": config}, tmp_path / "marked")
    plain = retain.report.write(SMALL, tmp_path / "plain")
    for notice in notices:
        assert notice in text_of(marked[0])
        assert notice not in text_of(plain[0])
    assert all(corner in path.read_text() for path in marked if path.suffix == ".svg")
    assert not any(corner in path.read_text() for path in plain if path.suffix == ".svg")


def test_failures_and_what_was_not_run_are_told_with_the_reason(tmp_path: Path) -> None:
    made = made_up.with_failure()
    made["config"]["skipped"] = {"birds → scenes": "CUB_200_2011 was not found in data."}
    said = text_of(retain.report.write(made, tmp_path)[0])
    assert "What failed or was not run" in said
    assert said.count("The loss became NaN") == 3
    assert "EWC, λ = 400, seed 1, after 1 of 5 tasks" in said
    assert "CUB_200_2011 was not found in data." in said


def test_a_page_without_the_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"retain\[study\]\""):
        retain.report.write(SMALL, tmp_path)


def test_importing_the_report_loads_nothing_heavy() -> None:
    heavy = "{'matplotlib', 'jinja2', 'rich'} & set(sys.modules)"
    code = f"import sys, retain.report; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_sample_is_marked_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tmp_path)
    assert "SAMPLE page" in capsys.readouterr().out
    said = text_of(tmp_path / "report.html")
    assert "SAMPLE." in said
    assert "not a result of yours" in said
