"""Text from anywhere, so that it can be written to a file of UTF-8 and seen on a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What a terminal obeys (but tabs and new lines), what ends a line elsewhere, what turns text
# around, what is not UTF-8.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Text for a terminal: control characters, which it would obey, as Python writes them."""
    return CONTROL.sub(lambda found: repr(found.group())[1:-1], text)


def in_one_line(text: str) -> str:
    """`visible`, and with new lines and tabs as Python writes them: a name takes one line."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def legible(value: Any) -> Any:
    """Plain data in which every text is `visible`; names are `in_one_line`, errors have theirs."""
    if isinstance(value, str):
        return in_one_line(value)
    if isinstance(value, Mapping):
        return {
            legible(key): visible(item)
            if key == "error" and isinstance(item, str)
            else legible(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [legible(item) for item in value]
    return value
