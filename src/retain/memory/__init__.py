"""What the user holds: four names, one body."""

from retain.memory.ewc import EWC
from retain.memory.local_mas import LocalMAS
from retain.memory.mas import MAS
from retain.memory.memory_file import load
from retain.memory.si import SI

__all__ = ["EWC", "MAS", "SI", "LocalMAS", "load"]
