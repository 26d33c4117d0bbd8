"""Small models of every kind, to compare the engine with one sample at a time."""

from . import convolutional, mlp, norms, recurrent, vision  # noqa: F401
from .measure import TOLERANCE, LogLikelihood, Watched
from .specimen import REGISTRY, Specimen

__all__ = ["REGISTRY", "TOLERANCE", "LogLikelihood", "Specimen", "Watched"]
