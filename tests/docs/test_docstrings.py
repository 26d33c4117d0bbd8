"""Everything public has an example of its own in its docstring, and each of them runs.

Public is what the reference shows, `docs/reference/api.md`: functions and classes, and of a class
its public methods and properties, also those that it inherits from classes of this package. An
example stands in the docstring of the very thing that it shows, and uses it by its name: that of
its class, or of what it overrides, does not count for it. An override without a docstring promises
what the overridden method does, and the page does not list it anew.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import retain
from tests.docs.stand_ins import further, namespace

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
SHOWN = re.compile(
    r"^::: ([\w.]+)(?:\n    options:\n      (?:members: (?:\[([^]]+)\]|(false))|\w+: \w+))?", re.M
)
PLAIN = ["__version__"]  # no docstring of its own: the package's has its example
# What is only handed on: as `output=` of a memory, to the report, inside of the package.
HANDED_ON = {"LogitsNorm", "Content", "HeldModel", "Attachment"}


def named(path: str) -> object:
    """What goes by this path: an attribute of a module, or a module itself."""
    module, _, name = path.rpartition(".")
    found = importlib.import_module(module) if module else None
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(path)


def is_ours(kind: type) -> bool:
    """Whether a class is of this package."""
    return kind.__module__.partition(".")[0] == "retain"


def shown() -> dict[str, object]:
    """Path -> what the reference shows under it, each once."""
    found: dict[str, object] = {f"retain.{name}": getattr(retain, name) for name in retain.__all__}
    for path, members, alone in SHOWN.findall(PAGE.read_text(encoding="utf-8")):
        one = named(path)
        if inspect.ismodule(one):
            found |= {f"{path}.{name}": getattr(one, name) for name in members.split(", ")}
            continue
        found[path] = one
        if inspect.isclass(one) and not alone:
            wanted = members.split(", ") if members else None
            known = set(map(id, found.values()))
            found |= {
                f"{path}.{name}": method
                for name, method in written(one)
                if id(method) not in known and (wanted is None or name in wanted)
            }
    return found


def written(kind: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties that this package has written, with what they promise anew."""
    seen: set[str] = set()
    for owner in filter(is_ours, kind.__mro__):
        for name, one in vars(owner).items():
            method = isinstance(one, (property, classmethod, staticmethod)) or callable(one)
            if name.startswith("_") or name in seen or not method or inspect.isclass(one):
                continue
            if one.__doc__ or not inspect.getdoc(getattr(kind, name)):
                seen.add(name)
                yield name, one


def said(thing: object) -> str:
    """What its own docstring says, and no other's."""
    return inspect.cleandoc(thing.__doc__ or "")


def returned(function: object) -> Iterator[type]:
    """The classes of this package that a function, a method or a property gives."""
    inner = getattr(function, "fget", None) or getattr(function, "__func__", function)
    waiting = [typing.get_type_hints(inspect.unwrap(inner)).get("return")]
    while waiting:
        one = waiting.pop()
        waiting += typing.get_args(one)
        if inspect.isclass(one) and not typing.get_args(one) and is_ours(one):
            yield one


EVERY = shown()


def test_the_reference_shows_what_there_is():
    expected = {"retain.MAS.observe", "retain.MAS.tasks", "retain.LocalMAS.observing"}
    expected |= {"retain.SI.observe", "retain.Importance.pool"}
    assert expected < EVERY.keys()
    assert "retain.EWC.observe" not in EVERY  # it is that of MAS
    assert "retain.LocalMAS.consolidate" not in EVERY  # it says nothing of its own
    assert len(EVERY) > 100


def test_what_is_returned_is_shown_as_well():
    """Whoever has a handle in hand finds in the reference what it can do."""
    classes = [one for one in EVERY.values() if inspect.isclass(one)]
    lacking = {
        f"{path} -> {kind.__name__}"
        for path, one in EVERY.items()
        if not inspect.isclass(one) and not isinstance(one, str)
        for kind in returned(one)
        if kind.__name__ not in HANDED_ON and not any(issubclass(c, kind) for c in classes)
    }
    assert not lacking


def test_only_what_a_trainer_calls_is_left_out():
    """Methods are hidden where all of them are hooks of another package's class."""
    for path, _members, alone in SHOWN.findall(PAGE.read_text(encoding="utf-8")):
        if alone:
            assert not all(map(is_ours, named(path).__mro__[:-1])), path


@pytest.mark.parametrize("path", EVERY)
def test_the_example_of_a_public_name_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = path.rpartition(".")[2]
    text = said(retain if name in PLAIN else EVERY[path])
    test = doctest.DocTestParser().get_doctest(text, namespace() | further(text), path, None, 0)
    assert test.examples, f"{path} has no >>> example of its own"
    assert any(re.search(rf"\b{name}\b", example.source) for example in test.examples)
    said_of_it: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = doctest.DocTestRunner(verbose=False).run(test, out=said_of_it.append)
    assert outcome.failed == 0, "".join(said_of_it)
