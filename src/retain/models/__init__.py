"""What learns: a backbone that all tasks share, a head for each, and EBLL's auto-encoder."""

from retain.models.autoencoder import AutoEncoder
from retain.models.build import build_model
from retain.models.network import TaskNetwork

__all__ = ["AutoEncoder", "TaskNetwork", "build_model"]
