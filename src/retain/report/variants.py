"""What a results.json says, as values: the runs, and the runs that differ only in their seed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain import arguments, experiment
from retain.experiment.content import FILE, Content, read_content
from retain.experiment.metrics import Spread, mean_or_none
from retain.experiment.record import LayerImportance, Record
from retain.legible import legible, visible
from retain.report.format import METHODS, class_names, knob_name, method_name, number

AccuracyByClass = Mapping[str, Mapping[str, float | None]]  # task: class: accuracy


class ShownRun(Record):
    """One method on one sequence of tasks with one seed, as its record says, and what follows."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Those that Ω was computed on; () is all."""
        return tuple(self.importance_classes or ())

    @property
    def memory(self) -> list[dict[str, int]]:
        """Bytes kept after each task, by kind; of an older file after the last one alone."""
        if self.memory_bytes_by_task is not None:
            return self.memory_bytes_by_task
        return [self.memory_bytes] if self.memory_bytes else []

    @property
    def layers(self) -> Mapping[str, LayerImportance]:
        """Ω parameter by parameter, in a few numbers; empty where none was kept."""
        return self.importance_by_layer or {}

    @property
    def about_importance(self) -> tuple[Hashable, ...]:
        """What tells runs of one method apart beside λ: the penalty's form, and the data of Ω."""
        return self.form, self.importance_on, self.classes

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
class Variant:
    """Runs that differ only in their seed, under one label.

    Variants of one `curve` differ in the value of the method's knob, and in nothing else.
    """

    method: str
    label: str
    curve: str
    runs: tuple[ShownRun, ...]

    @property
    def done(self) -> tuple[ShownRun, ...]:
        """The runs that reached the end; only these are averaged."""
        return tuple(run for run in self.runs if run.status == "done")

    def over(self, measure: Callable[[ShownRun], float | None]) -> Spread | None:
        """A number of each run, over the finished seeds of which it is known."""
        return Spread.of(map(measure, self.done))

    def measure(self, name: str) -> Spread | None:
        """A measure of results.json (`average_accuracy`, …) over the finished seeds."""
        return self.over(lambda run: getattr(run, name))

    def at(self, after: int, on: int) -> Spread | None:
        """Accuracy on task `on` after learning task `after`, over the finished seeds."""
        return self.over(lambda run: run.at(after, on))


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
class ShownResults:
    """A whole results.json."""

    source: str
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    runs: tuple[ShownRun, ...]
    sequences: tuple[Sequence, ...]

    def with_status(self, status: str) -> tuple[ShownRun, ...]:
        """The runs that are `done`, `running` or `failed`."""
        return tuple(run for run in self.runs if run.status == status)


# ---- from a results.json ----

Source = experiment.Results | Content | Mapping[str, Any] | Path | str


def read(results: Source) -> ShownResults:
    """What was found out: held by a run, or the content of a results.json, the file, its folder.

    Raises:
        FileError: the file is missing, truncated or from a newer schema, or does not hold
            what its schema promises; every problem that was found is listed.
    """
    if isinstance(results, experiment.Results):
        return _shown(results.content(), FILE)
    if isinstance(results, Content):
        return _shown(results, FILE)
    if isinstance(results, Mapping):
        return _shown(read_content(results), "these results")
    path = arguments.path("results", results, of="a folder that holds results.json, or of the file")
    content = read_content(path)
    return _shown(content, str(path / FILE if path.is_dir() else path))


def _shown(content: Content, source: str) -> ShownResults:
    # Here, once, for page, pictures and terminal: every text is one that can be written and seen.
    plain = legible(content.model_dump())
    runs = tuple(map(ShownRun.model_validate, plain["runs"]))
    return ShownResults(
        visible(source), plain["versions"], plain["config"], runs, _in_sequences(runs)
    )


# ---- by what differs beside the seed ----


def _in_sequences(runs: Iterable[ShownRun]) -> tuple[Sequence, ...]:
    """The runs by their tasks, and in each sequence by what differs beside the seed."""
    by_tasks: dict[tuple[str, ...], list[ShownRun]] = {}
    for run in runs:
        by_tasks.setdefault(tuple(run.tasks), []).append(run)
    return tuple(Sequence(tasks, _variants(own)) for tasks, own in by_tasks.items())


# method, Ω on, classes, form, λ, another knob
VariantKey = tuple[str, str | None, tuple[str, ...], str | None, str, float | None]


def _variants(runs: list[ShownRun]) -> tuple[Variant, ...]:
    order = {method: place for place, method in enumerate(METHODS)}
    groups: dict[VariantKey, list[ShownRun]] = {}
    for run in runs:
        about = (run.importance_on, run.classes, run.form, _strength(run), run.knob)
        key = (run.method, *about)
        groups.setdefault(key, []).append(run)
    keys = sorted(
        groups,
        key=lambda key: (order.get(key[0], len(order)), key[0], key[3] or ""),
    )
    return tuple(
        Variant(key[0], _label(key, keys), _curve(key, keys), tuple(groups[key])) for key in keys
    )


def _strength(run: ShownRun) -> str:
    """λ as asked for: one that was searched for may differ between seeds, and is one variant."""
    if run.strength_search:
        return "auto"
    return "" if run.strength is None else number(run.strength)


def _label(key: VariantKey, keys: list[VariantKey]) -> str:
    """The method's name, and only what tells it from the same method's other variants."""
    method, _, _, _, strength, knob = key
    parts = [_curve(key, keys)]
    if strength and len({other[4] for other in keys if other[0] == method}) > 1:
        parts.append(f"λ = {strength}")
    if knob is not None:
        parts.append(f"{knob_name(method)} = {number(knob)}")
    return ", ".join(parts)


def _curve(key: VariantKey, keys: list[VariantKey]) -> str:
    """The same without the value of the knob."""
    method, importance_on, classes, form, _, _ = key
    others = [other for other in keys if other[0] == method]
    parts = [method_name(method)]
    if importance_on and len({other[1] for other in others}) > 1:
        parts.append(f"Ω on {importance_on}")
    if len({other[2] for other in others}) > 1:
        parts.append(f"Ω on {class_names(classes)}")
    if form and len({other[3] for other in others}) > 1:
        parts.append(form)
    return ", ".join(parts)
