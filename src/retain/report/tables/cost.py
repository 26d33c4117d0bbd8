"""What each method takes: time, bytes that are kept, and searches for λ."""

from __future__ import annotations

from retain.experiment.record import TriedStrength
from retain.report.format import number, seconds, size
from retain.report.tables.grid import UNKNOWN, Cell, Grid
from retain.report.variants import Sequence

SPENT = {
    "train_seconds": "Training",
    "importance_seconds": "Importance",
    "evaluation_seconds": "Evaluation",
}


def cost(sequence: Sequence) -> Grid | None:
    """One row a variant: seconds by kind of work and bytes kept; None when nothing is known."""
    kinds = [kind for kind in SPENT if any(v.measure(kind) for v in sequence.variants)]
    rows = []
    for variant in sequence.variants:
        spent = [variant.measure(kind) for kind in kinds]
        kept = [sum(run.memory[-1].values()) for run in variant.done if run.memory]
        if any(spent) or kept:
            cells = [Cell(seconds(s.mean), s.mean) if s else UNKNOWN for s in spent]
            bytes_kept = Cell(size(max(kept)), max(kept)) if kept else UNKNOWN
            rows.append((Cell(variant.label), *cells, bytes_kept))
    if not rows:
        return None
    return Grid(
        title=f"Time and memory: {sequence.name}",
        columns=("Method", *(SPENT[kind] for kind in kinds), "Kept at the end"),
        rows=tuple(rows),
        caption=("Time of one run, mean over seeds. " if kinds else "") + "Kept: everything that "
        "must be in memory or on disk for the next task, the network itself included.",
        sortable=True,
    )


def kept_at_each_step(sequence: Sequence) -> Grid | None:
    """One row a variant: bytes kept after each task, and how many times the network that is."""
    rows = []
    for variant in sequence.one_per_method():
        steps = next((run.memory for run in variant.done if run.memory), ())
        if steps:
            sizes = [sum(step.values()) for step in steps]
            cells = [Cell(size(count), count) for count in sizes]
            times = sizes[-1] / steps[-1]["model"] if steps[-1].get("model") else None
            often = Cell(f"{times:.1f}", times) if times else UNKNOWN
            rows.append((Cell(variant.label), *cells, often))
    if not rows:
        return None
    steps_taken = max(len(row) for row in rows) - 2
    return Grid(
        title=f"Kept after each task: {sequence.name}",
        columns=(
            "Method",
            *(str(k + 1) for k in range(steps_taken)),
            "Times the network",
        ),
        groups=(("", 1), ("After task", steps_taken), ("", 1)),
        rows=tuple(row for row in rows if len(row) == steps_taken + 2),
        caption="Everything that must be in memory or on disk for the next task, the network "
        "itself included, and what is needed only while a task is learned.",
    )


def searches(sequence: Sequence) -> Grid | None:
    """One row a run whose λ was searched for, with what was tried; None when there is none."""
    rows = []
    for variant in sequence.variants:
        for run in variant.runs:
            if run.strength_search:
                tried = " → ".join(_tried(step) for step in run.strength_search)
                chosen = "–" if run.strength is None else number(run.strength)
                rows.append((Cell(variant.label), Cell(str(run.seed)), Cell(chosen), Cell(tried)))
    if not rows:
        return None
    return Grid(
        title=f"How λ was chosen: {sequence.name}",
        columns=("Method", "Seed", "Chosen λ", "Tried"),
        rows=tuple(rows),
        caption="λ is searched for without old data, from a high value downwards, for the least "
        "sum of what the new task loses and what the old ones are expected to lose. In brackets "
        "accuracy on the new task's validation data, ✓ beside the choice on that task. The "
        "chosen λ is the geometric mean of the choices so far.",
    )


def _tried(step: TriedStrength) -> str:
    strength, accuracy = step.get("strength"), step.get("accuracy")
    said = "–" if strength is None else number(strength)
    said += "" if accuracy is None else f" ({100 * accuracy:.1f})"
    return said + (" ✓" if step.get("accepted") else "")
