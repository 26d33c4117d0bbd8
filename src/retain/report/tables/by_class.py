"""What Ω on some classes alone keeps of them, and what it gives up elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from retain.experiment.metrics import Spread, mean_or_none
from retain.report.format import class_names, percent, points
from retain.report.tables.grid import UNKNOWN, Cell, Grid
from retain.report.variants import AccuracyByClass, Sequence, ShownResults, ShownRun, Variant

Where = Callable[[str], bool]
PLACES = ("on the classes that matter", "elsewhere in the first task", "on the second task")


@dataclass(frozen=True)
class KeptByClass:
    """One variant over its finished seeds: final accuracies at `PLACES`, and changes of the first.

    `changes` are from right after learning to the end, on the classes that matter and elsewhere.
    """

    variant: Variant
    finals: tuple[Spread | None, Spread | None, Spread | None]
    changes: tuple[Spread | None, Spread | None]


def kept(sequence: Sequence, chosen: tuple[str, ...]) -> list[KeptByClass]:
    """What each variant kept; classes count alike, whatever their number of test images."""
    return [_kept(variant, chosen) for variant in sequence.variants if variant.done]


def _kept(variant: Variant, chosen: tuple[str, ...]) -> KeptByClass:
    def matters(name: str) -> bool:
        return name in chosen

    def elsewhere(name: str) -> bool:
        return name not in chosen

    def final(where: Where) -> Spread | None:
        return variant.over(lambda run: _mean(run, run.accuracy_by_class, where))

    def change(where: Where) -> Spread | None:
        return variant.over(lambda run: _change(run, where))

    last = len(variant.runs[0].tasks) - 1
    finals = (final(matters), final(elsewhere), variant.at(last, last))
    return KeptByClass(variant, finals, (change(matters), change(elsewhere)))


def _mean(run: ShownRun, by_class: AccuracyByClass | None, where: Where) -> float | None:
    classes = (by_class or {}).get(run.tasks[0], {})
    return mean_or_none([v for name, v in classes.items() if where(name) and v is not None])


def _change(run: ShownRun, where: Where) -> float | None:
    then, now = (
        _mean(run, by, where) for by in (run.accuracy_by_class_learned, run.accuracy_by_class)
    )
    return None if then is None or now is None else now - then


def adapted(sequence: Sequence, chosen: tuple[str, ...]) -> Grid | None:
    """A row a variant: accuracy at the end and its change, where it matters and elsewhere."""
    rows = []
    for one in kept(sequence, chosen):
        cells: list[Cell] = []
        for final, change in zip(one.finals, one.changes):
            cells.append(Cell(percent(final), final.mean) if final else UNKNOWN)
            cells.append(Cell(percent(change), change.mean) if change else UNKNOWN)
        second = one.finals[2]
        cells.append(Cell(percent(second), second.mean) if second else UNKNOWN)
        rows.append((Cell(one.variant.label), *cells, Cell(str(len(one.variant.done)))))
    if not rows:
        return None
    return Grid(
        title="What is kept where it matters, and given up elsewhere",
        columns=("Method", *("at the end, %", "change, points") * 2, "at the end, %", "Seeds"),
        groups=(
            ("", 1),
            (f"On {class_names(chosen)}", 2),
            ("Other classes of the first task", 2),
            ("Second task", 1),
            ("", 1),
        ),
        rows=tuple(rows),
        caption="Change: from right after learning the first task to after the second. Every "
        "class counts alike. Mean ± standard deviation over seeds.",
        sortable=False,
    )


def said(results: ShownResults) -> str:
    """What Ω on some classes did against Ω on all, in a sentence; nothing if it is not known."""
    chosen = tuple(results.config.get("adapt_to") or ())
    for sequence in results.sequences:
        mas = {
            one.variant.runs[0].classes: one
            for one in kept(sequence, chosen)
            if one.variant.method == "mas"
        }
        whole, some = mas.get(()), mas.get(chosen)
        if whole and some and all((*whole.changes, *some.changes, whole.finals[2], some.finals[2])):
            return _sentence(whole, some, class_names(chosen))
    return ""


def _sentence(whole: KeptByClass, some: KeptByClass, named: str) -> str:
    here, there = ([one.changes[k] for one in (some, whole)] for k in (0, 1))
    second = [one.finals[2] for one in (some, whole)]
    return (
        f"With Ω on {named} alone, MAS changed by {_points(here[0])} points on them and by "
        f"{_points(there[0])} on the other classes of the first task; with Ω on all classes by "
        f"{_points(here[1])} and {_points(there[1])}. It reached {percent(second[0], 1)} % on the "
        f"second task, against {percent(second[1], 1)} %."
    )


def _points(value: Spread | None) -> str:
    if value is None:
        return "–"
    return points(value.mean) + ("" if value.sd is None else f" ± {100 * value.sd:.1f}")
