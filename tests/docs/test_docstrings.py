"""Everything public that can be called has an example in its docstring, and each of them runs.

Public is what the reference shows, `docs/reference/api.md`: names, and the methods of classes.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import retain
from retain.memory.body import Memory
from tests.docs.stand_ins import namespace

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
SHOWN = re.compile(
    r"^::: ([\w.]+)(?:\n    options:\n      members: (?:\[([^]]+)\]|(false)))?", re.M
)
PLAIN = ["__version__"]  # no docstring of its own: the package's has its example


def named(path: str) -> object:
    """What goes by this path: an attribute of a module, or a module itself."""
    module, _, name = path.rpartition(".")
    found = importlib.import_module(module) if module else None
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(path)


def shown() -> dict[str, object]:
    """Path -> what the reference shows under it, with methods, for classes that it shows whole."""
    found: dict[str, object] = {}
    for path, members, alone in SHOWN.findall(PAGE.read_text(encoding="utf-8")):
        one = named(path)
        if inspect.ismodule(one):
            found |= {f"{path}.{name}": getattr(one, name) for name in members.split(", ")}
            continue
        found[path] = one
        if inspect.isclass(one) and not alone:
            found |= {f"{path}.{name}": method for name, method in methods(one)}
    return {f"retain.{name}": getattr(retain, name) for name in retain.__all__} | found


def methods(kind: type) -> Iterator[tuple[str, object]]:
    """Public methods that retain has written; of other memories those that `MAS` has not."""
    known = set() if kind is retain.MAS else set(dir(retain.MAS))
    for name, one in inspect.getmembers(kind, inspect.isroutine):
        ours = str(getattr(one, "__module__", "")).startswith("retain")
        known_already = issubclass(kind, Memory) and name in known
        if ours and not name.startswith("_") and not known_already:
            yield name, one


def examples(path: str, thing: object) -> doctest.DocTest:
    """Those in its docstring."""
    said = inspect.getdoc(thing) or ""
    return doctest.DocTestParser().get_doctest(said, namespace(), path, None, 0)


EVERY = shown()


def test_the_reference_shows_what_there_is():
    assert {"retain.MAS.observe", "retain.LocalMAS.observing", "retain.Importance.pool"} < set(
        EVERY
    )
    assert "retain.EWC.observe" not in EVERY  # it is that of MAS
    assert len(EVERY) > 50


@pytest.mark.parametrize("path", EVERY)
def test_the_example_of_a_public_name_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, _, name = path.rpartition(".")
    test = examples(path, retain if name in PLAIN else EVERY[path])
    if not test.examples and whole in EVERY:  # that of its class calls it, and is tried by itself
        assert any(f".{name}(" in one.source for one in examples(whole, EVERY[whole]).examples)
        return
    assert test.examples, f"{path} has no >>> example"
    assert any(name in example.source for example in test.examples)
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert outcome.failed == 0, "".join(said)
