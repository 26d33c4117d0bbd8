"""Warnings that point at the line of the user's own code that led to them."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

OURS = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


def warn(text: str) -> None:
    """Warn, and give as the place the nearest caller outside of retain and torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)
