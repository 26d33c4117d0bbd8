"""The report as a user calls it: what is written, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import retain.report
from retain.errors import FileError, InputError

from . import made_up


def test_page_and_figures_are_written_beside_the_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(made_up.results(("finetune", "mas"))))
    written = retain.report.write(tmp_path)
    assert written[0] == tmp_path / "report.html"
    assert {path.parent for path in written[1:]} == {tmp_path / "figures"}
    assert {path.suffix for path in written[1:]} == {".svg", ".png"}
    assert all(path.stat().st_size > 500 for path in written)


def test_a_dict_needs_a_place_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out="):
        retain.report.write(made_up.results(("mas",)))
    assert (tmp_path / "report.html") in retain.report.write(made_up.results(("mas",)), tmp_path)


def test_an_out_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FileError, match=r"cannot be written into .*taken"):
        retain.report.write(made_up.results(("mas",)), tmp_path / "taken")


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    first = retain.report.write(made_up.results(("mas",)), tmp_path / "a")
    second = retain.report.write(made_up.results(("mas",)), tmp_path / "b")
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]


def test_nothing_outside_the_page_is_asked_for(tmp_path: Path) -> None:
    page = retain.report.write(made_up.results(("mas",)), tmp_path)[0].read_text()
    assert "http:" not in page.replace("http://www.w3.org/", "")
    assert "https:" not in page
    assert "src=" not in page


def test_text_from_the_results_is_escaped(tmp_path: Path) -> None:
    page = retain.report.write(made_up.with_failure(), tmp_path)[0].read_text()
    assert "&lt;script&gt;" in page
    assert "4-5 <script>" not in page
