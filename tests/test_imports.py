"""Imports: one way through the house, and nothing optional at the door."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import retain
from retain.errors import MissingExtraError
from retain.extras import needs

SOURCE = Path(retain.__file__).parent

# From the ground up: a room may import from those in earlier lines, and from its own.
LEVELS = [
    {"errors", "starting"},
    {
        "closest",
        "eagerly",
        "extras",
        "header",
        "interrupts",
        "lazily",
        "legible",
        "pieces",
        "ranges",
        "saying",
        "sharding",
    },
    {"arguments", "atomic"},
    {"readable"},
    {"parameters", "files", "borrowed"},
    {"counterparts"},
    {"samples"},
    {"statistics"},
    {"per_sample"},
    {"local_rule"},
    {"summary"},
    {"importance"},
    {"penalty", "drift"},
    {"memory"},
    {"strength", "repair", "passports"},
    {"integrations"},
    {"tasks"},
    {"models"},
    {"methods"},
    {"experiment"},
    {"studies"},
    {"report"},
    {"cli"},
]
OPTIONAL = [
    "torchvision",
    "sklearn",
    "rich",
    "matplotlib",
    "typer",
    "timm",
    "scipy",
    "jinja2",
    "transformers",
    "peft",
    "accelerate",
    "lightning",
    "pydantic",
    "distributed",
]
# Rooms that say at their door what to install.
NEEDS_STUDY = ("cli", "experiment", "studies")


def room(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path):
    """Every module that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"


def test_imports_run_one_way():
    level = {name: depth for depth, names in enumerate(LEVELS) for name in names}
    wrong, unknown = set(), set()
    for path in SOURCE.rglob("*.py"):
        here = room(path)
        if here in {"__init__", "__main__"}:
            continue
        if here not in level:
            unknown.add(here)
            continue
        for module in imported(path):
            parts = module.split(".")
            if parts[0] != "retain" or len(parts) < 2 or parts[1] not in level:
                continue
            if parts[1] != here and level[parts[1]] >= level[here]:
                wrong.add(f"{path.relative_to(SOURCE)} imports retain.{parts[1]}")
    assert not wrong
    assert not unknown, "say in LEVELS where these rooms stand"


def files_imported():
    """Of each file of ours, those that it imports: at the top, in a function or for its types."""
    file_of = {}
    for path in SOURCE.rglob("*.py"):
        parts = ("retain", *path.relative_to(SOURCE).with_suffix("").parts)
        file_of[".".join(parts).removesuffix(".__init__")] = path
    return {
        path: {file_of[module] for module in imported(path) if module in file_of} - {path}
        for path in SOURCE.rglob("*.py")
        if path.name != "__init__.py"  # a door may name what is in its room
    }


def test_no_file_imports_itself_through_others():
    doors = set(SOURCE.rglob("__init__.py"))
    order = TopologicalSorter({path: theirs - doors for path, theirs in files_imported().items()})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" → ".join(str(path.relative_to(SOURCE)) for path in error.args[1]))


def test_a_user_of_mas_loads_nothing_optional():
    code = (
        "import sys, retain; print([m for m in sys.modules if m.split('.')[0] in "
        f"{OPTIONAL} or m.startswith(('retain.tasks', 'retain.models', 'retain.methods', "
        "'retain.experiment', 'retain.report', 'retain.integrations', 'retain.cli'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_import_loads_torch_numpy_safetensors_and_little_else():
    """How long an import takes is what it loads: no other package, whatever is installed."""

    def loaded(code):
        code += "; import sys; print(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return set(done.stdout.split())

    plain = "import torch, numpy, numpy.random, safetensors.torch"
    more = {name.partition(".")[0] for name in loaded("import retain") - loaded(plain)}
    assert more - sys.stdlib_module_names == {"retain"}


def test_nothing_optional_is_imported_at_the_top():
    """Only inside the function that needs it, where `needs` says how to get it."""
    wrong = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            if room(path) not in NEEDS_STUDY:
                packages = {name.split(".")[0] for name in names} & set(OPTIONAL) - {"rich"}
                wrong += [f"{path.relative_to(SOURCE)} imports {one}" for one in packages]
    assert not wrong


def test_the_door():
    assert set(retain.__all__) <= set(dir(retain))
    assert len(retain.__all__) <= 14
    assert retain.__version__.count(".") >= 1
    assert retain.tasks.__name__ == "retain.tasks"
    with pytest.raises(AttributeError, match="no attribute 'mas'"):
        retain.mas  # noqa: B018


def test_a_missing_extra_says_what_to_install():
    assert needs("json.decoder").JSONDecoder
    with pytest.raises(
        MissingExtraError, match=r'needs nowhere_to_be.*pip install "retain\[study\]"'
    ):
        needs("nowhere_to_be.found")


def test_an_extra_that_is_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found") as caught:
        needs("halfway")
    assert not isinstance(caught.value, MissingExtraError)


def test_nobody_reaches_into_a_memory():
    """What `memory.terms`, `anchor`, `state_dict()` and `check()` give is all that others use."""
    inside = {"_state", "_more_tensors", "_take_more", "_guard"}
    reached = set()
    for folder in (SOURCE, Path(__file__).parent):
        for path in folder.rglob("*.py"):
            if path.is_relative_to(SOURCE / "memory"):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr in inside:
                    reached.add(f"{path.relative_to(folder)} uses .{node.attr}")
    assert not reached
