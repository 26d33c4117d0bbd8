"""The paper's numbers with their source, as the package holds them."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """The content of `paper.json`: Tables 2 and 3, the long sequence, and where they are from."""
    text = files("retain").joinpath("studies/paper.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def published_pairs() -> list[tuple[str, str]]:
    """The sequences of two data sets of Tables 2 and 3."""
    return [(first, second) for first, second in published()["table2"]["sequences"]]


def published_sequence() -> list[str]:
    """The data sets of the long sequence, in its order."""
    return list(published()["sequence"]["tasks"])
