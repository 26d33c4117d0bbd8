"""Whatever text a folder of results holds: it comes out as text, in its own place."""

import io
import json
import re
from pathlib import Path

import pytest

import retain.report
from retain.report.format import slug

from . import made_up
from .browser import Browser, installed

METHODS = (
    'x"><script>window.hit=1</script>',
    "../../escaped",
    "$5_$10",
    "[/x] [bold]",
    "л-MAS",
    "м-MAS",
    "a" * 300,
    "caf\udce9",
    "\x1b[2J\x00",
    "two\nlines",
    "\u202eabc",
    "mas",
)
TASKS = ('"><img src=x onerror=window.hit=1>', "$\\frac{1}{0}$", "[/x]", "../up", "\udcff")


def hostile(folder):
    content = made_up.results(("mas",), TASKS, seeds=(0,), title="[/x] $a_$ <b>\udce9")
    (run,) = content["runs"]
    content["runs"] = [{**run, "method": method} for method in METHODS]
    content["runs"].append({**run, "method": "<i>", "status": "failed", "error": "</pre><script>1"})
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = hostile(tmp_path_factory.mktemp("around") / "out")
    return retain.report.write(folder)


def test_nothing_is_written_elsewhere_and_no_two_share_a_picture(written):
    folder = written[0].parent
    assert {path.parent for path in written[1:]} == {folder / "figures"}
    assert len({str(path).lower() for path in written}) == len(written)
    assert sorted(folder.parent.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == {"results.json", "report.html", "figures"}
    assert set((folder / "figures").iterdir()) == set(written[1:])
    matrices = [path for path in written if "matrix" in path.name and path.suffix == ".png"]
    assert len(matrices) == len(METHODS)
    assert all(re.fullmatch(r"[a-z0-9-]+\.(svg|png)", path.name) for path in written[1:])


def test_markup_and_formulas_are_text(written):
    page = written[0].read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert page.count("<script>") == 1
    assert r"two\nlines" in page
    assert re.search('<span class="long">a{300}', page), "beside it no number is seen"
    assert "\u202e" not in page
    for vector in (path.read_text(encoding="utf-8") for path in written if path.suffix == ".svg"):
        assert not re.search(r"<text[^>]*>[^<]*a{100}", vector), "wider than any picture"
        assert "<script" not in vector
        assert "<img" not in vector
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_the_terminal_shows_it_as_text(written):
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(retain.report.table(written[0].parent))
    said = console.export_text()
    assert "[/x]" in said
    assert "\x1b" not in said
    assert retain.report.summary(written[0].parent)


def test_no_script_runs_but_ours(written, tmp_path):
    program = installed()
    if program is None:
        pytest.skip("no Chromium found: apt-get install chromium")
    browser = Browser(program, tmp_path / "profile")
    try:
        assert browser.opened(written[0], 1400) == []
        assert browser.run("window.hit === undefined")
        # ours does: the buttons that it shows are there
        assert browser.run("document.querySelectorAll('.copies:not([hidden])').length") > 0
        # another, had it come in, would not
        added = (
            "(() => { const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
            " document.body.append(s); return window.hit === undefined })()"
        )
        assert browser.run(added)
        browser.picture(tmp_path / "page.png")
    finally:
        browser.close()


def test_names_make_names_of_their_own():
    assert slug("0-1, 2-3") == "0-1-2-3"
    assert slug("mas") == "mas"
    assert slug("л") != slug("м")
    assert slug("a" * 300) != slug("a" * 301)
    assert all(
        re.fullmatch(r"[a-z0-9-]+", slug(name)) for name in ("", "…", "../..", "\udce9", "日")
    )


def test_the_folder_itself_may_be_called_anything(tmp_path):
    out = tmp_path / "[bold] $x_$ <b>"
    hostile(out)
    assert retain.report.write(out)[0] == out / "report.html"
    assert Path(out / "report.html").stat().st_size > 1000
