"""Whether two results are the same, but for rounding."""

from __future__ import annotations

import math

from torch import Tensor

from retain.per_sample.precision import Precision, narrowest
from retain.pieces import CACHED, pieces


def same(one: Tensor, other: Tensor, precision: Precision, floor: float = 0.0) -> bool:
    """Whether two tensors agree to what rounding explains, or to `floor`. NaN never does."""
    allowed = Precision(narrowest(precision.dtype, one.dtype, other.dtype)).result
    return distance(one, other) <= max(allowed * float(other.norm()), floor)


def distance(one: Tensor, other: Tensor) -> float:
    """‖one − other‖₂, without a temporary as large as they are."""
    norms = [float((a.to(b.dtype) - b).norm()) for a, b in pieces(one, other, size=CACHED)]
    return math.hypot(*norms)
