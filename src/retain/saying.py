"""Warnings that point at the line of the user's own code that led to them."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path

import torch

# Folders, with what ends their names: torchvision is not torch. A `with` of the user's on something
# that is made of a generator passes through contextlib.
PASSED_THROUGH = (
    f"{Path(__file__).parent}{os.sep}",
    f"{Path(torch.__file__).parent}{os.sep}",
    contextlib.__file__,
)


def warn(text: str) -> None:
    """Warn, and give as the place the nearest caller outside of retain and torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PASSED_THROUGH):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)
