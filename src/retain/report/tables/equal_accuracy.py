"""What each method forgets at equal accuracy on new tasks, in a table and in sentences."""

from __future__ import annotations

from retain.experiment.metrics import Spread
from retain.methods import METHODS
from retain.report.format import BOUNDS, capitalised, listed, percent
from retain.report.tables import side_by_side
from retain.report.tables.grid import UNKNOWN, Cell, Grid
from retain.report.tables.operating_points import (
    OperatingPoint,
    at_target,
    curves,
    free_point,
    nearest,
    points,
    unfinished,
    why_not_equal,
)
from retain.report.variants import Sequence, ShownResults


def is_comparison(results: ShownResults) -> bool:
    """Whether one was asked for, or a method was swept along its knob beside FineTune."""
    if results.config.get("comparison"):
        return True
    asked = (results.config.get("sweeps"), results.config.get("strengths"))
    lists = [values for given in asked for values in (given or {}).values()]
    swept = any(isinstance(values, list | tuple) and len(values) > 1 for values in lists)
    return swept and any(free_point(points(sequence)) for sequence in results.sequences)


def sentences(sequence: Sequence) -> str:
    """For each method what it forgets at the accuracy of FineTune minus one point on new tasks."""
    found = points(sequence)
    free = free_point(found)
    if free is None or why_not_equal(found):
        return " ".join([side_by_side.sentences(found), *unfinished(sequence)] if found else [])
    said = [
        f"{free.name} forgets {_points(free.forgotten)} points and reaches "
        f"{100 * free.new.mean:.1f} % on new tasks. At that accuracy minus 1 point:"
    ]
    for curve, own in curves(found).items():
        best = at_target(found, curve)
        near = nearest(found, curve)
        if best is not None:
            said.append(f"{best.name} forgets {_points(best.forgotten)}.")
        elif len(own) == 1:
            said.append(
                f"{near.name} does not get there: {100 * near.new.mean:.1f} %, "
                f"forgetting {_points(near.forgotten)}."
            )
        else:
            said.append(
                f"{curve} never gets there: {100 * near.new.mean:.1f} % at best, "
                f"forgetting {_points(near.forgotten)}."
            )
    return " ".join([*said, *unfinished(sequence)])


def conclusion(sequence: Sequence) -> str:
    """Which method forgets least at that accuracy, beside FineTune: a sentence to begin with."""
    found = points(sequence)
    free = free_point(found)
    if free is None or why_not_equal(found):
        return side_by_side.conclusion(found)
    rivals = {name: own for name, own in curves(found).items() if own[0].method not in BOUNDS}
    there = [best for curve in rivals if (best := at_target(found, curve))]
    aside = "Joint training aside, " if any(p.method == "joint" for p in found) else ""
    forgotten = _points(free.forgotten)
    least = min((_shown(p) for p in there), default=None)
    if least is None:
        said = (
            "no method comes within 1 point of FineTune's accuracy on new tasks; "
            f"FineTune forgets {forgotten} points."
        )
    elif least >= _shown(free):
        said = (
            f"no method forgets less than FineTune ({forgotten} points) at its accuracy on new "
            "tasks minus 1 point."
        )
    else:
        ahead = [p for p in there if _shown(p) == least]
        each = listed([_points(p.forgotten) for p in ahead])
        said = (
            f"{listed([p.name for p in ahead])} {'forgets' if len(ahead) == 1 else 'forget'} least "
            f"at the new-task accuracy of FineTune minus 1 point: {each} points; FineTune "
            f"{forgotten}."
        )
    return capitalised(aside + said)


def _points(value: Spread) -> str:
    return percent(value, 1)


def _shown(point: OperatingPoint) -> float:
    """What it forgets, as it is written: what reads the same is the same."""
    return round(100 * point.forgotten.mean, 1)


def compared(sequence: Sequence) -> Grid | None:
    """One row a method: what it needs, and what it forgets where it learns as well as FineTune."""
    found = points(sequence)
    free = free_point(found)
    if free is None or why_not_equal(found):
        return side_by_side.table(found, sequence.name)
    every = {free.curve: [free], **curves(found)}
    partial = any(point.new.n < point.seeds for point in found)
    return Grid(
        title=f"At the new-task accuracy of FineTune minus 1 point: {sequence.name}",
        columns=(
            *("Method", "Needs", "With", "Forgetting, points", "New tasks, %", "On the front"),
            *(["Seeds"] if partial else []),
        ),
        rows=tuple(_row(found, curve, own, partial) for curve, own in every.items()),
        caption="Of each method the value of its knob that forgets least among those that learn "
        "new tasks at most 1 point worse than FineTune, on the mean over seeds; where none does, "
        "its best accuracy on new tasks. Needs: from before the new task, beside the network. On "
        "the front: of how many of its values no other point, of whatever method, is better in "
        "one of the two and no worse in the other.",
        heads=2,
        sortable=True,
    )


def _row(
    found: list[OperatingPoint], curve: str, own: list[OperatingPoint], partial: bool
) -> tuple[Cell, ...]:
    best = at_target(found, curve)
    shown = best or nearest(found, curve)
    front = sum(point.front for point in own)
    if best is not None:
        cells = [
            Cell(best.setting or "–"),
            Cell(_points(best.forgotten), best.forgotten.mean),
        ]
    else:
        word = "never gets" if len(own) > 1 else "does not get"
        cells = [Cell(f"{word} there", mark="bad"), UNKNOWN]
    return (
        Cell(curve),
        Cell(METHODS[own[0].method].needs if own[0].method in METHODS else "–"),
        *cells,
        Cell(percent(shown.new, 1), shown.new.mean),
        Cell(str(front), front),
        *([Cell(f"{shown.new.n} of {shown.seeds}", shown.new.n)] if partial else []),
    )
