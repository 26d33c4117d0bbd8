"""What is written about a job that failed."""

from __future__ import annotations

import traceback
from pathlib import Path

from retain.errors import RetainError


def described(error: Exception) -> str:
    """The message of an error of ours; also the type and the place of one that is not."""
    if isinstance(error, RetainError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
