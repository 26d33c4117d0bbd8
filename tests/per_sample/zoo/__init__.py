"""Small models of every kind, to compare the engine with one sample at a time."""

from . import (  # noqa: F401
    attention,
    convolutional,
    embeddings,
    huggingface,
    mlp,
    norms,
    oddities,
    rearranged,
    recurrent,
    reparametrised,
    vision,
    wide,
)
from .measure import TOLERANCE, LogLikelihood, Watched, batch_of, one_off, relative_errors
from .specimen import REGISTRY, Specimen

__all__ = [
    "REGISTRY",
    "TOLERANCE",
    "LogLikelihood",
    "Specimen",
    "Watched",
    "batch_of",
    "one_off",
    "relative_errors",
]
