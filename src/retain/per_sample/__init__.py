"""The per-sample engine: Σₖ |∂sₖ/∂θ|ᵖ for any model, exactly, at the price of one backward pass."""

from retain.per_sample.engine import PerSample
from retain.per_sample.fallback import WITHOUT_GRADIENT
from retain.per_sample.reference import sums_by_loop
from retain.per_sample.scores import Score

__all__ = ["WITHOUT_GRADIENT", "PerSample", "Score", "sums_by_loop"]
