"""An option is described in one place: its name, its help, its default and its bounds."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import retain

pytest.importorskip("pydantic")
from retain.cli.flags import fields_of
from retain.experiment import Config
from retain.studies.study import Asked
from retain.tasks.options import TaskOptions

SOURCE = Path(retain.__file__).parent
BOUNDS = ("expected", "or more", "at least", "at most")


def descriptions():
    for field in dataclasses.fields(TaskOptions):
        yield field.name, field.metadata["description"]
    for model in (Config, Asked):
        for name, field in fields_of(model).items():
            yield name, field.description


def texts():
    """Every text of the source, joined where it is written in parts, by the file that it is in."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.relative_to(SOURCE).as_posix(), node.value


def test_no_description_is_written_twice():
    opening = {text[:30].lower() for _, text in descriptions()}  # the rest may be filled in
    found = {start: [] for start in opening}
    for path, text in texts():
        for start in opening:
            if text[:30].lower() == start:
                found[start].append(path)
    assert {start: paths for start, paths in found.items() if len(paths) != 1} == {}


def test_no_message_repeats_the_bounds_of_an_option():
    """What a value may be is asked of the field; f-strings that name an option do not say it."""
    names = {name for name, _ in descriptions()}
    again = [
        (path, text)
        for path, text in texts()
        for name in names
        if text.startswith(f"{name} is ") and any(word in text for word in BOUNDS)
    ]
    assert not again
