"""A measure over seeds: its mean and its spread."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Spread:
    """The mean of a measure over seeds, its standard deviation (None for one seed), and n."""

    mean: float
    sd: float | None
    n: int


def spread(values: list[float]) -> Spread | None:
    """Mean and sample standard deviation (n − 1) of `values`; None when there are none."""
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def mean_or_none(values: list[float | None]) -> float | None:
    """The mean of `values`; None when there are none or one of them is not known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
