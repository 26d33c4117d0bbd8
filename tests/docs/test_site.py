"""The guide is built with warnings as errors, and needs no network to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

import retain

ROOT = Path(__file__).parents[2]
# What a browser fetches without being asked.
ASKED = re.compile(
    r'<(?:script|img|iframe|source)[^>]*\ssrc="((?:https?:)?//[^"]+)'
    r'|<link[^>]*\shref="((?:https?:)?//[^"]+)'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    said = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-3000:]
    return folder


def test_nothing_is_fetched_while_one_reads(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        asked = [a or b for a, b in ASKED.findall(page.read_text(encoding="utf-8"))]
        assert not asked, (page, asked)


def test_every_public_name_and_command_is_in_the_reference(site):
    api = (site / "reference" / "api.html").read_text(encoding="utf-8")
    missing = [
        name
        for name in retain.__all__
        if not re.search(rf'id="retain[\w.]*\.{name}"|>retain\.{name}<', api)
    ]
    assert not missing
    pytest.importorskip("typer")
    from retain.cli.app import app

    page = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    names = [c.name or c.callback.__name__ for c in app.registered_commands]
    assert len(names) > 5
    assert not [name for name in names if f">retain {name}<" not in page.replace("\n", "")]
    assert "--strength" in page


def test_links_to_files_beside_the_pages_lead_into_the_site(site):
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        for found in re.findall(r'href="(source/[^"#]+)"', text):
            assert (site / found).is_file()
    assert (site / "source" / "examples" / "serving.py.txt").is_file()


def test_figures_stay_in_one_line_and_sentences_are_wide_enough(site):
    page = (site / "methods.html").read_text(encoding="utf-8")
    assert "99.4\u00a0±\u00a00.3" in page
    assert " ± 0." not in page
    cells = dict.fromkeys(re.findall(r"<td[^>]*>[^<]*</td>", page))
    wide = [cell for cell in cells if len(re.sub(r"<[^>]+>", "", cell)) > 60]
    assert wide
    assert all('class="sentence"' in cell for cell in wide)


def test_commands_show_defaults_apart_and_examples_whole(site):
    page = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert "[default:" not in page
    epochs = page.replace("\n", "")
    assert "<code>--epochs</code></td><td><code>10</code></td>" in epochs
    example = re.search(r"retain compare --tasks folders.*?</code>", page, re.S)
    assert example is not None
    assert "\\\n" in example[0]
    assert "--sweep replay=0.01:0.1" in example[0]


def test_symbols_begin_no_emphasis(site):
    assert "torch.__future__" in (site / "reliability.html").read_text(encoding="utf-8")
    assert "θ*" in (site / "importance.html").read_text(encoding="utf-8")
