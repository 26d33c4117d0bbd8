"""What the user holds: four names, one body."""

from retain.memory.loading import load
from retain.memory.mas import MAS

__all__ = ["MAS", "load"]
