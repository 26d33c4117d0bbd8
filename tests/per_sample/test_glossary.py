"""One word for each thing: the glossary names every file, and words that it replaced are gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import retain.per_sample as room

FOLDER = Path(room.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
# What there were several words for: those that gave way.
REPLACED = re.compile(r"\b(opaque|mistrusted|distrusted|lost)\b", re.I)


def test_every_file_is_in_the_glossary() -> None:
    said = room.__doc__ or ""
    missing = [
        path.name
        for path in FOLDER.glob("*.py")
        if path.name != "__init__.py" and path.name not in said
    ]
    assert not missing
    folders = [path.name for path in FOLDER.iterdir() if (path / "__init__.py").exists()]
    assert folders
    assert not [name for name in folders if f"{name}/" not in said]


def test_every_file_in_the_glossary_is_there() -> None:
    said = re.findall(r"\b(\w+\.py)\b", room.__doc__ or "")
    assert said
    assert not [name for name in said if not (FOLDER / name).exists()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_words_that_gave_way(path: Path) -> None:
    found = [line for line in path.read_text("utf-8").splitlines() if REPLACED.search(line)]
    assert not found


def test_classes_have_names_of_their_own() -> None:
    classes: dict[str, list[str]] = {}
    for path in FILES:
        for name in re.findall(r"^class (\w+)", path.read_text("utf-8"), re.M):
            classes.setdefault(name, []).append(path.name)
    assert not {name: where for name, where in classes.items() if len(where) > 1}
