"""Names: a class is known by its name alone, wherever it is met."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import retain

SOURCE = Path(retain.__file__).parent
# A trainer's callback is imported from the trainer's room, and stands in the user's code alone.
TWICE = {"RetainCallback": {"integrations/lightning.py", "integrations/transformers/callback.py"}}


def test_no_two_classes_share_a_name():
    places = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(path.relative_to(SOURCE).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == TWICE
