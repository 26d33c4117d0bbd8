"""What the guide says about the tree is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_imports import LEVELS

ROOT = Path(__file__).parents[2]
GUIDE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *GUIDE,
    *sorted((ROOT / "experiments").glob("*.md")),
]
PATHS = re.compile(r"\b((?:src|tests|docs|examples|experiments|benchmarks)/[\w./-]*[\w/])")
UNFINISHED = re.compile(r"@@|\bTODO\b|\bFIXME\b|\bTBD\b")
LINKS = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    missing = [path for path in PATHS.findall(text) if not (ROOT / path.rstrip(".")).exists()]
    prose = re.sub(r"^ *```.*?^ *```$|`[^`]*`", "", text, flags=re.S | re.M)
    broken = [link for link in LINKS.findall(prose) if not (page.parent / link).exists()]
    assert not missing
    assert not broken
    assert not UNFINISHED.findall(text)


def test_every_room_is_in_the_picture_of_the_house():
    """And on the way down no floor is left and entered again."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| floor |") : text.index("`tests/test_imports.py`")]
    floors = [set(re.findall(r"`(\w+)`", row)) for row in table.splitlines()[2:]]
    shown = [room for floor in floors for room in floor]
    assert sorted(shown) == sorted(room for level in LEVELS for room in level)
    floor_of = {room: number for number, floor in enumerate(floors) for room in floor}
    reached = 0
    for level in LEVELS:
        assert min(floor_of[room] for room in level) >= reached, level
        reached = max(floor_of[room] for room in level)


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_begins_with_whom_it_serves(page):
    title, _, rest = page.read_text(encoding="utf-8").partition("\n\n")
    assert title.startswith("# ")
    assert rest.startswith("For anyone ")
