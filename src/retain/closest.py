"""The name that was probably meant, for the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean 'digits'?` (with its leading space), or nothing if no known name is close."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower, n=3, cutoff=0.6)
    if not near:
        return ""
    names = [repr(by_lower[name]) for name in near]
    return f" Did you mean {' or '.join(names)}?"
