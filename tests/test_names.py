"""Names: a type, or a file, is known by its name alone, wherever it is met."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import retain

SOURCE = Path(retain.__file__).parent
# A trainer's callback is imported from the trainer's room, and stands in the user's code alone.
TWICE = {"RetainCallback": {"integrations/lightning.py", "integrations/transformers/callback.py"}}
# A command and a method have the names that users type, and so has what they are made of.
TYPED = {
    "cli": {"importance", "repair", "run", "study"},
    "methods": {"ewc", "mas", "si"},
}


def types_in(path):
    """The names of the classes in a file, and of the types that it defines by a line at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for node in tree.body:
        for target in node.targets if isinstance(node, ast.Assign) else []:
            if isinstance(target, ast.Name) and target.id != target.id.upper():
                yield from [target.id] if target.id.lstrip("_")[0].isupper() else []


def test_no_two_types_share_a_name():
    places = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        for name in types_in(path):
            places[name].add(path.relative_to(SOURCE).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == TWICE
    assert {"Memory", "Weights", "_LentModel"} <= set(places)


def test_a_file_name_that_repeats_is_that_of_a_command_or_a_method():
    places = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        if not path.stem.startswith("__"):
            places[path.stem].add(path.relative_to(SOURCE).parts[0])
    repeated = {name: rooms for name, rooms in places.items() if len(rooms) > 1}
    assert repeated.keys() == set().union(*TYPED.values())
    assert all(TYPED.keys() & rooms for rooms in repeated.values())
