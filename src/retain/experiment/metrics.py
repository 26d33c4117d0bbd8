"""What an accuracy matrix says about a run, and runs with several seeds about a method.

R[i][j]: accuracy on task j after learning task i.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from retain.errors import InputError
from retain.extras import needs

Matrix = Sequence[Sequence[float | None]]


def average_accuracy(accuracy: Matrix) -> float:
    """The mean of the last row: 1/T Σⱼ R[T−1][j]."""
    return fmean(_row(accuracy, len(accuracy) - 1))


def average_forgetting(accuracy: Matrix) -> float | None:
    """How much of the best accuracy before the last task was lost; None with one task.

    1/(T−1) Σ_{j<T−1} (max_{i<T−1} R[i][j] − R[T−1][j])   (Chaudhry et al. 2018)
    """
    last = len(accuracy) - 1
    if last < 1:
        return None
    final = _row(accuracy, last)
    best = [max(_known(accuracy[i][j]) for i in range(j, last)) for j in range(last)]
    return fmean(b - f for b, f in zip(best, final))


def backward_transfer(accuracy: Matrix) -> float | None:
    """How later tasks changed earlier ones; None with one task.

    1/(T−1) Σ_{j<T−1} (R[T−1][j] − R[j][j])   (Lopez-Paz & Ranzato 2017)
    """
    last = len(accuracy) - 1
    if last < 1:
        return None
    return fmean(_known(accuracy[last][j]) - _known(accuracy[j][j]) for j in range(last))


def forward_transfer(before: Sequence[float], at_random: Sequence[float]) -> float | None:
    """How much better than random a task is before it is learned; None with one task.

    1/(T−1) Σ_{j>0} (R[j−1][j] − b[j])   (Lopez-Paz & Ranzato 2017), where b[j] is measured on the
    network with its first weights, and task j's head is new and the same in both.
    """
    if len(before) < 2:
        return None
    return fmean(r - b for r, b in zip(before[1:], at_random[1:]))


def plasticity(accuracy: Matrix) -> float:
    """The mean accuracy right after learning: 1/T Σⱼ R[j][j]."""
    return fmean(_known(accuracy[j][j]) for j in range(len(accuracy)))


@dataclass(frozen=True)
class Spread:
    """A measure over n seeds: its mean and its standard deviation (n − 1), None for one seed."""

    mean: float
    sd: float | None = None
    n: int = 1

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """That of the values that are known; None where there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(fmean(known), stdev(known) if len(known) > 1 else None, len(known))


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean of `values`; None when there are none or one of them is not known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class Comparison:
    """Two methods over the same seeds.

    Attributes:
        difference: the mean of first − second over the seeds.
        low: lower end of the 95 % confidence interval of that mean.
        high: its upper end.
        p_value: of the paired t test, two-sided.
        seeds: how many there were.

    Examples:
        >>> found = results.compare("mas", "finetune", "average_forgetting")  # a Comparison
        >>> found.seeds
        2
    """

    difference: float
    low: float
    high: float
    p_value: float
    seeds: int


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """A paired comparison of two methods, each with one number per seed, in the same order.

    Raises:
        InputError: the two do not have one number for each of the same two or more seeds.
    """
    if len(first) != len(second) or len(first) < 2:
        raise InputError(
            f"Got {len(first)} and {len(second)} numbers; a paired comparison needs one from each "
            "method for each of the same two or more seeds."
        )
    differences = [a - b for a, b in zip(first, second)]
    mean = fmean(differences)
    if stdev(differences) == 0:  # the t statistic would be 0/0 or infinite
        return Comparison(mean, mean, mean, 1.0 if mean == 0 else 0.0, len(first))
    result = needs("scipy.stats").ttest_rel(first, second)
    interval = result.confidence_interval(0.95)
    return Comparison(
        mean, float(interval.low), float(interval.high), float(result.pvalue), len(first)
    )


def _row(accuracy: Matrix, i: int) -> list[float]:
    return [_known(value) for value in accuracy[i]]


def _known(value: float | None) -> float:
    if value is None:
        raise InputError("An accuracy is null where it should have been measured.")
    return value
