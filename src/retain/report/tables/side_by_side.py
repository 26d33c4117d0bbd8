"""What each method forgets and reaches as it was run, where no equal accuracy can be found."""

from __future__ import annotations

from collections.abc import Sequence as Several

from retain.methods import METHODS
from retain.report.format import capitalised, listed, percent
from retain.report.tables.grid import Cell, Grid
from retain.report.tables.operating_points import OperatingPoint, at_target, curves, why_not_equal

LISTED = 12  # points in a sentence
NAMED = 3  # of those that beat one


def sentences(found: Several[OperatingPoint]) -> str:
    """Why nothing is said at equal accuracy, what each forgets and reaches, and what is beaten."""
    if not found:
        return ""
    shown = found if len(found) <= LISTED else [p for p in found if p.front]
    said = [why_not_equal(found), f"{'; '.join(f'{p.name} forgets {_reached(p)}' for p in shown)}."]
    beaten = [f"{p.name} by {_names(_beaten_by(p, found))}" for p in shown if not p.front]
    if len(shown) < len(found):
        said.append("Each of the other values and methods is beaten by one of these.")
    elif beaten:
        said.append(
            "Beaten, as another is better in one of the two and no worse in the other: "
            f"{'; '.join(beaten)}."
        )
    elif len(found) > 1:
        said.append("None is beaten: better in one of the two is worse in the other.")
    there = [best for curve in curves(found) if (best := at_target(found, curve))]
    if there:
        each = ". ".join(f"{p.name} forgets {percent(p.forgotten, 1)}" for p in there)
        said.append(f"Within 1 point of FineTune on new tasks, or above it: {each}.")
    return " ".join(said)


def conclusion(found: Several[OperatingPoint]) -> str:
    """What there is to choose from: the methods that no other beats."""
    rivals = [p for p in found if p.method != "joint"] or list(found)
    if not rivals:
        return ""
    left = [p for p in rivals if not _beaten_by(p, rivals)]
    aside = "Joint training aside, " if len(rivals) < len(found) else ""
    if len(rivals) == 1:
        aside, said = "", f"{rivals[0].name} forgets {_reached(rivals[0])}."
    elif len(left) == 1:
        said = f"{left[0].name} beats all others: it forgets {_reached(left[0])}."
    else:
        choice = listed([f"{p.name} (forgets {_reached(p)})" for p in left])
        said = f"the choice is between {choice}."
    return capitalised(aside + said)


def table(found: Several[OperatingPoint], name: str) -> Grid | None:
    """One row a method: what it needs, what it forgets and reaches, and by which it is beaten."""
    if not found:
        return None
    partial = any(point.new.n < point.seeds for point in found)
    rows = []
    for point in found:
        others = _beaten_by(point, found)
        known = METHODS.get(point.method)
        rows.append(
            (
                Cell(point.curve),
                Cell("–" if known is None else known.needs),
                Cell(point.setting or "–"),
                Cell(percent(point.forgotten, 1), point.forgotten.mean),
                Cell(percent(point.new, 1), point.new.mean),
                Cell(_names(others) or "none", len(others), "bad" if others else ""),
                *([Cell(f"{point.new.n} of {point.seeds}", point.new.n)] if partial else []),
            )
        )
    return Grid(
        title=f"What each method forgets and reaches: {name}",
        columns=(
            *("Method", "Needs", "With", "Forgetting, points", "New tasks, %", "Beaten by"),
            *(["Seeds"] if partial else []),
        ),
        rows=tuple(rows),
        caption="Each method as it was run, the mean over seeds. Needs: from before the new task, "
        "beside the network. Beaten by: methods that are better in one of the two and no worse in "
        "the other.",
        heads=2,
        sortable=True,
    )


def _beaten_by(point: OperatingPoint, found: Several[OperatingPoint]) -> list[OperatingPoint]:
    return [other for other in found if other.beats(point)]


def _names(points: Several[OperatingPoint]) -> str:
    names = [point.name for point in points]
    more = [f"{len(names) - NAMED} others"] if len(names) > NAMED + 1 else []
    return listed([*(names[:NAMED] if more else names), *more])


def _reached(point: OperatingPoint) -> str:
    return (
        f"{percent(point.forgotten, 1)} points and reaches {percent(point.new, 1)} % on new tasks"
    )
