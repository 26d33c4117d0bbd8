"""How many functions of Python are called: what a fixed price is measured by, free of noise."""

from __future__ import annotations

import sys
from collections.abc import Callable


def counted(run: Callable[[], object]) -> int:
    """Calls of functions, built-in ones included, that `run` takes."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls
