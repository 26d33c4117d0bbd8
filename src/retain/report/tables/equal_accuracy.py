"""What each method forgets at equal accuracy on new tasks, in a table and in sentences."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retain.methods import METHODS
from retain.report.format import BOUNDS, capitalised, knob_name, method_name, number, percent
from retain.report.spread import Spread, spread
from retain.report.tables.grid import Cell, Grid
from retain.report.variants import Sequence, ShownResults, Variant

FREE = "finetune"
LESS = 0.01  # of FineTune's accuracy on new tasks that may be given up for what is kept


@dataclass(frozen=True)
class OperatingPoint:
    """One method with one value of its knob, over the seeds."""

    method: str
    value: float | None
    new: Spread  # accuracy on the tasks after the first, right after each was learned
    forgotten: Spread
    chosen: bool = False  # its λ was, on each new task, so that it has no one value
    front: bool = False  # no other point is better in one of the two and no worse in the other

    @property
    def setting(self) -> str:
        """The knob and its value; empty where there is none."""
        if self.chosen:
            return f"{knob_name(self.method)} = auto"
        return "" if self.value is None else f"{knob_name(self.method)} = {number(self.value)}"


def is_comparison(results: ShownResults) -> bool:
    """Whether a method was swept along its knob: what equal accuracy can be found among."""
    asked = (results.config.get("sweeps"), results.config.get("strengths"))
    lists = [values for given in asked for values in (given or {}).values()]
    return any(isinstance(values, list | tuple) and len(values) > 1 for values in lists)


def points(sequence: Sequence) -> list[OperatingPoint]:
    """Every variant that finished a seed, those of the Pareto front marked."""
    found = [point for variant in sequence.variants if (point := _point(variant))]
    return [replace(p, front=not any(_better(q, p) for q in found)) for p in found]


def _point(variant: Variant) -> OperatingPoint | None:
    learned = [run.new_tasks() for run in variant.done]
    new = spread([value for value in learned if value is not None])
    forgotten = variant.measure("average_forgetting")
    if new is None or forgotten is None:
        return None
    first = variant.runs[0]
    chosen = bool(first.search)
    strength = None if chosen else first.strength
    value = strength if first.knob is None else first.knob
    return OperatingPoint(variant.method, value, new, forgotten, chosen)


def _better(one: OperatingPoint, other: OperatingPoint) -> bool:
    """Whether `one` is at least as good in both, and better in one."""
    a = (one.new.mean, -one.forgotten.mean)
    b = (other.new.mean, -other.forgotten.mean)
    return a != b and a[0] >= b[0] and a[1] >= b[1]


def target(found: list[OperatingPoint]) -> float | None:
    """The accuracy on new tasks at which methods are compared; None without FineTune."""
    free = [point.new.mean for point in found if point.method == FREE]
    return free[0] - LESS if free else None


def at_target(found: list[OperatingPoint], method: str) -> OperatingPoint | None:
    """Where the method forgets least among its values that reach the target, if one does."""
    wanted = target(found)
    own = [p for p in found if p.method == method and wanted is not None and p.new.mean >= wanted]
    return min(own, key=lambda p: p.forgotten.mean, default=None)


def sentences(sequence: Sequence) -> str:
    """For each method what it forgets at the accuracy of FineTune minus one point on new tasks."""
    found = points(sequence)
    wanted = target(found)
    if wanted is None:
        return ""
    free = next(point for point in found if point.method == FREE)
    said = [
        f"FineTune forgets {_points(free.forgotten)} points and reaches "
        f"{100 * free.new.mean:.1f} % on new tasks. At that accuracy minus 1 point:"
    ]
    for method in dict.fromkeys(p.method for p in found if p.method != FREE):
        best = at_target(found, method)
        if best is not None:
            said.append(f"{_named(best)} forgets {_points(best.forgotten)}.")
        else:
            near = max((p for p in found if p.method == method), key=lambda p: p.new.mean)
            said.append(
                f"{method_name(method)} never gets there: {100 * near.new.mean:.1f} % at best, "
                f"forgetting {_points(near.forgotten)}."
            )
    return " ".join(said)


def conclusion(sequence: Sequence) -> str:
    """Which method forgets least at that accuracy, beside FineTune: a sentence to begin with."""
    found = points(sequence)
    if target(found) is None:
        return ""
    free = next(point for point in found if point.method == FREE)
    methods = dict.fromkeys(p.method for p in found if p.method not in BOUNDS)
    there = [best for method in methods if (best := at_target(found, method))]
    aside = "Joint training aside, " if any(p.method == "joint" for p in found) else ""
    least = min(there, key=lambda p: p.forgotten.mean, default=None)
    forgotten = _points(free.forgotten)
    if least is None:
        said = (
            "no method comes within 1 point of FineTune's accuracy on new tasks; "
            f"FineTune forgets {forgotten} points."
        )
    elif least.forgotten.mean >= free.forgotten.mean:
        said = (
            f"no method forgets less than FineTune ({forgotten} points) at its accuracy on new "
            "tasks minus 1 point."
        )
    else:
        said = (
            f"{_named(least)} forgets least at the new-task accuracy of FineTune minus 1 point: "
            f"{_points(least.forgotten)} points; FineTune {forgotten}."
        )
    return capitalised(aside + said)


def _named(point: OperatingPoint) -> str:
    if point.method == "replay" and point.value is not None:
        return f"replay of {100 * point.value:g} %"
    return method_name(point.method) + (f" ({point.setting})" if point.setting else "")


def _points(value: Spread) -> str:
    return percent(value, 1)


def compared(sequence: Sequence) -> Grid | None:
    """One row a method: what it needs, and what it forgets where it learns as well as FineTune."""
    found = points(sequence)
    if target(found) is None:
        return None
    rows = []
    for method in dict.fromkeys(point.method for point in found):
        best = at_target(found, method)
        front = sum(point.front for point in found if point.method == method)
        needs = METHODS[method].needs if method in METHODS else "–"
        cells = [Cell(method_name(method)), Cell(needs)]
        if best is None:
            near = max((p for p in found if p.method == method), key=lambda p: p.new.mean)
            cells += [
                Cell("never gets there", mark="bad"),
                Cell("–", mark="quiet"),
                Cell(percent(near.new, 1), near.new.mean),
            ]
        else:
            cells += [
                Cell(best.setting or "–"),
                Cell(_points(best.forgotten), best.forgotten.mean),
                Cell(percent(best.new, 1), best.new.mean),
            ]
        rows.append((*cells, Cell(str(front), front)))
    return Grid(
        title=f"At the new-task accuracy of FineTune minus 1 point: {sequence.name}",
        columns=("Method", "Needs", "With", "Forgetting, points", "New tasks, %", "On the front"),
        rows=tuple(rows),
        caption="Of each method the value of its knob that forgets least among those that learn "
        "new tasks at most 1 point worse than FineTune, on the mean over seeds; where none does, "
        "its best accuracy on new tasks. Needs: from before the new task, beside the network. On "
        "the front: how many of its values no other method's beats in both.",
        heads=2,
        sortable=True,
    )
