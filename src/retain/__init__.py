"""Teach a trained network something new without losing what it can do.

memory = retain.MAS(model)            # any nn.Module, already trained
memory.observe(unlabelled_loader)     # Ω from data, no labels
memory.consolidate()                  # Ω and θ*
memory.attach(optimizer)              # every step is protected from here on

>>> import retain
>>> retain.__version__ == retain.__version__.strip() != ""
True
"""

from __future__ import annotations

from retain.starting import is_command, quiet_interrupt

if is_command():
    quiet_interrupt()

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from retain.errors import RetainError
from retain.importance import Importance
from retain.memory import EWC, MAS, SI, LocalMAS, load
from retain.repair import repair
from retain.statistics import frozen_statistics
from retain.strength import StrengthChoice, choose_strength

try:
    __version__ = version("retain")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0+source"

__all__ = [
    "EWC",
    "MAS",
    "SI",
    "Importance",
    "LocalMAS",
    "RetainError",
    "StrengthChoice",
    "__version__",
    "choose_strength",
    "frozen_statistics",
    "load",
    "repair",
]

# Behind the door: rooms that `import retain` does not enter before somebody asks for them.
_ROOMS = frozenset({"experiment", "methods", "models", "passports", "report", "studies", "tasks"})


def __getattr__(name: str) -> Any:
    if name == "passport":
        return importlib.import_module("retain.passports").passport
    if name in _ROOMS:
        return importlib.import_module(f"retain.{name}")
    raise AttributeError(f"module 'retain' has no attribute {name!r}")
