"""Teach a trained network something new without losing what it can do."""

from importlib.metadata import version

from retain.errors import RetainError
from retain.importance import Importance
from retain.memory import MAS, load

__version__ = version("retain")

__all__ = ["MAS", "Importance", "RetainError", "__version__", "load"]
