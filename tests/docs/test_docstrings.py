"""Every public name of retain has an example in its docstring, and each of them runs."""

from __future__ import annotations

import doctest
import inspect
import warnings

import pytest

import retain

PLAIN = ["__version__"]  # no docstring of its own: the package's has its example


@pytest.mark.parametrize("name", retain.__all__)
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = retain if name in PLAIN else getattr(retain, name)
    text = inspect.getdoc(thing)
    assert text is not None
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert test.examples, f"{name} has no >>> example"
    assert any(f"retain.{name}" in example.source for example in test.examples)
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert outcome.failed == 0, "".join(said)
