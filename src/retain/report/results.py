"""What a results.json says, as values: the runs, and the runs that differ only in their seed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

Matrix = tuple[tuple[float | None, ...], ...]
Bytes = Mapping[str, int]
ByClass = Mapping[str, Mapping[str, float | None]]  # task: class: accuracy


@dataclass(frozen=True)
class Run:
    """One method on one sequence of tasks with one seed; accuracies are fractions, 0 to 1."""

    method: str
    seed: int
    tasks: tuple[str, ...]
    accuracy: Matrix  # accuracy[i][j]: on task j after learning task i; None where not measured
    status: str = "done"  # done, running or failed
    error: str | None = None
    strength: float | None = None
    knob: float | None = None  # the value of a sweep over something other than λ
    form: str | None = None
    importance_on: str | None = None
    importance_classes: tuple[str, ...] = ()  # those that Ω was computed on; () is all
    measures: Mapping[str, float] = field(default_factory=dict)  # by results.json's own names
    memory: tuple[Bytes, ...] = ()  # bytes kept after each task, by kind
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # importance_by_layer
    search: tuple[Mapping[str, Any], ...] = ()  # strength_search
    by_class: ByClass = field(default_factory=dict)  # at the end
    by_class_learned: ByClass = field(default_factory=dict)  # of each task, right after learning it

    @property
    def about_importance(self) -> tuple[Hashable, ...]:
        """What tells runs of one method apart beside λ: the penalty's form, and the data of Ω."""
        return self.form, self.importance_on, self.importance_classes

    @property
    def learned(self) -> int:
        """How many tasks were learned and measured."""
        return sum(any(value is not None for value in row) for row in self.accuracy)

    def at(self, after: int, on: int) -> float | None:
        """The accuracy on task `on` after learning task `after`, None where it is not known."""
        row = self.accuracy[after] if after < len(self.accuracy) else ()
        return row[on] if on < len(row) else None

    def old_tasks(self) -> float | None:
        """Final accuracy, averaged over all tasks but the last; None where one is missing."""
        last = len(self.tasks) - 1
        return mean_or_none([self.at(last, j) for j in range(last)])

    def new_tasks(self) -> float | None:
        """Accuracy right after learning, averaged over all tasks but the first."""
        return mean_or_none([self.at(i, i) for i in range(1, len(self.tasks))])


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


@dataclass(frozen=True)
class Variant:
    """Runs that differ only in their seed, under one label."""

    method: str
    label: str
    runs: tuple[Run, ...]

    @property
    def done(self) -> tuple[Run, ...]:
        """The runs that reached the end; only these are averaged."""
        return tuple(run for run in self.runs if run.status == "done")

    def measure(self, name: str) -> Spread | None:
        """A measure of results.json (`average_accuracy`, …) over the finished seeds."""
        return spread([run.measures[name] for run in self.done if name in run.measures])

    def at(self, after: int, on: int) -> Spread | None:
        """Accuracy on task `on` after learning task `after`, over the finished seeds."""
        values = [run.at(after, on) for run in self.done]
        return spread([value for value in values if value is not None])


@dataclass(frozen=True)
class Sequence:
    """All that was run on one sequence of tasks."""

    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        """The tasks with arrows between them, shortened in the middle when there are many."""
        if len(self.tasks) > 5:
            return f"{self.tasks[0]} → {self.tasks[1]} → … → {self.tasks[-1]}"
        return " → ".join(self.tasks)

    def one_per_method(self) -> tuple[Variant, ...]:
        """The variants, and of those that differ only in λ the one with the best final accuracy."""
        return tuple(self._best(lambda v: (v.method, *v.runs[0].about_importance)))

    def best_by_method(self) -> dict[str, Variant]:
        """Of each method that finished a seed the variant with the best final accuracy."""
        return {variant.method: variant for variant in self._best(lambda v: v.method)}

    def _best(self, key: Callable[[Variant], Hashable]) -> list[Variant]:
        chosen: dict[Hashable, Variant] = {}
        for variant in self.variants:
            known = chosen.get(key(variant))
            if variant.done and (known is None or _final(variant) > _final(known)):
                chosen[key(variant)] = variant
        return list(chosen.values())


def _final(variant: Variant) -> float:
    accuracy = variant.measure("average_accuracy")
    return accuracy.mean if accuracy else float("-inf")


@dataclass(frozen=True)
class Results:
    """A whole results.json."""

    source: str
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    runs: tuple[Run, ...]
    sequences: tuple[Sequence, ...]

    def with_status(self, status: str) -> tuple[Run, ...]:
        """The runs that are `done`, `running` or `failed`."""
        return tuple(run for run in self.runs if run.status == status)
