"""Ω in a few numbers per parameter, for the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def by_layer(importance: Mapping[str, Tensor] | None) -> dict[str, dict[str, Any]] | None:
    """For each parameter the mean of Ω, its share of the total, and `QUANTILES` of its elements."""
    if importance is None:
        return None
    arrays = {name: omega.detach().float().cpu().numpy() for name, omega in importance.items()}
    sums = {name: float(array.sum(dtype=np.float64)) for name, array in arrays.items()}
    total = sum(sums.values())
    return {
        name: {
            "mean": sums[name] / array.size,
            "share": sums[name] / total if total else 0.0,
            "quantiles": [float(q) for q in np.quantile(array, QUANTILES)],
        }
        for name, array in arrays.items()
    }
