"""What is differentiated, sample by sample: MAS's norms, and the log-likelihoods of the Fisher."""

from retain.per_sample.scores.fisher import Empirical, Exact, Sampled
from retain.per_sample.scores.mas import EachOutput, Norm, SquaredNorm
from retain.per_sample.scores.score import Score

UNLABELLED = (EachOutput, Exact, Norm, SquaredNorm)  # those that need no target

__all__ = [
    "UNLABELLED",
    "EachOutput",
    "Empirical",
    "Exact",
    "Norm",
    "Sampled",
    "Score",
    "SquaredNorm",
]
