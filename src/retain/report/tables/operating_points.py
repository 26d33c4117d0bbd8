"""Each method with each value of its knob: what it forgets, and how well it learns new tasks."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

from retain.experiment.metrics import Spread
from retain.methods import METHODS
from retain.report.format import knob_name, listed, number
from retain.report.variants import Sequence, ShownRun, Variant

FREE = "finetune"  # what the others are compared with
LESS = 0.01  # of FineTune's accuracy on new tasks that may be given up for what is kept
SAME = 1e-9  # accuracies that differ by less are equal: 0.8 − 0.7 and 0.9 − 0.8 are


@dataclass(frozen=True)
class OperatingPoint:
    """One method with one value of its knob, over the seeds."""

    method: str
    curve: str  # the method, and what it differs in from its other curves, such as the form
    value: float | None
    new: Spread  # accuracy on the tasks after the first, right after each was learned
    forgotten: Spread
    seeds: int  # that were asked for; `new.n` finished
    chosen: bool = False  # its λ was, on each new task, so that it has no one value
    front: bool = False  # no other point is better in one of the two and no worse in the other

    @property
    def setting(self) -> str:
        """The knob and its value; empty where there is none."""
        if self.chosen:
            return f"{knob_name(self.method)} = auto"
        return "" if self.value is None else f"{knob_name(self.method)} = {number(self.value)}"

    @property
    def name(self) -> str:
        """The method and its setting, and how many seeds finished where not all did."""
        if self.method == "replay" and self.value is not None:
            method, setting = f"{self.curve} of {100 * self.value:g} %", ""
        else:
            method, setting = self.curve, self.setting
        said = [setting] if setting else []
        if self.new.n < self.seeds:
            said.append(f"{self.new.n} of {self.seeds} seeds")
        return f"{method} ({', '.join(said)})" if said else method

    def beats(self, other: OperatingPoint) -> bool:
        """Whether it is better in one of the two, and no worse in the other."""
        more = self.new.mean - other.new.mean
        less = other.forgotten.mean - self.forgotten.mean
        return min(more, less) >= -SAME and max(more, less) > SAME


def points(sequence: Sequence) -> list[OperatingPoint]:
    """Every variant that finished a seed, those of the Pareto front marked."""
    seeds = len({run.seed for variant in sequence.variants for run in variant.runs})
    found = [point for variant in sequence.variants if (point := _point(variant, seeds))]
    return [replace(p, front=not any(q.beats(p) for q in found)) for p in found]


def _point(variant: Variant, seeds: int) -> OperatingPoint | None:
    new = variant.over(ShownRun.new_tasks)
    forgotten = variant.measure("average_forgetting")
    if new is None or forgotten is None:
        return None
    first = variant.runs[0]
    chosen = bool(first.strength_search)
    strength = None if chosen else first.strength
    value = strength if first.knob is None else first.knob
    return OperatingPoint(variant.method, variant.curve, value, new, forgotten, seeds, chosen)


def unfinished(sequence: Sequence) -> list[str]:
    """What finished no seed, a sentence each: a method, or some of its values."""
    several: dict[str, list[Variant]] = {}
    for variant in sequence.variants:
        several.setdefault(variant.curve, []).append(variant)
    said = []
    for curve, own in several.items():
        lost = sum(not variant.done for variant in own)
        if lost == len(own):
            said.append(f"{curve} did not finish.")
        elif lost:
            said.append(f"{lost} of {len(own)} values of {curve} did not finish.")
    return said


def free_point(found: Several[OperatingPoint]) -> OperatingPoint | None:
    """FineTune's, if it finished."""
    return next((point for point in found if point.method == FREE), None)


def curves(found: Several[OperatingPoint]) -> dict[str, list[OperatingPoint]]:
    """The points by curve, FineTune's aside."""
    names = dict.fromkeys(point.curve for point in found if point.method != FREE)
    return {name: [point for point in found if point.curve == name] for name in names}


def target(found: Several[OperatingPoint]) -> float | None:
    """The accuracy on new tasks at which methods are compared; None without FineTune."""
    free = free_point(found)
    return None if free is None else free.new.mean - LESS


def at_target(found: Several[OperatingPoint], curve: str) -> OperatingPoint | None:
    """Where the curve forgets least among its values that reach the target, if one does."""
    wanted = target(found)
    if wanted is None:
        return None
    own = [p for p in found if p.curve == curve and p.new.mean >= wanted - SAME]
    least = min((p.forgotten.mean for p in own), default=0.0)
    return max(
        (p for p in own if p.forgotten.mean <= least + SAME), key=lambda p: p.new.mean, default=None
    )


def nearest(found: Several[OperatingPoint], curve: str) -> OperatingPoint:
    """Where the curve learns new tasks best."""
    return max((p for p in found if p.curve == curve), key=lambda p: p.new.mean)


def why_not_equal(found: Several[OperatingPoint]) -> str:
    """Why these cannot be compared at equal accuracy, and a remedy; empty where they can."""
    if free_point(found) is None:
        return "FineTune has not finished, at whose accuracy on new tasks methods are compared."
    each = curves(found)
    if not each:
        return "No other method has finished, so there is nothing to compare FineTune with."
    if any(len(own) > 1 for own in each.values()):
        return ""
    alone: dict[str, list[str]] = {}
    for name, own in each.items():
        alone.setdefault(_alone(own[0]), []).append(name)
    said = "; ".join(f"{listed(names)}: {why}" for why, names in alone.items())
    return (
        f"No method here has two values of a knob ({said}), so what each would forget at equal "
        "accuracy on new tasks is not known: what stands here is what each forgets and reaches as "
        "it was run. To compare, add a method with a knob, or values of one, such as "
        "--strength mas=0.1:1 or --sweep wise-ft=0.3:0.7."
    )


def _alone(point: OperatingPoint) -> str:
    known = METHODS.get(point.method)
    if known is not None and known.knob is None:
        return "no knob"
    return f"{point.setting} alone" if point.setting else "one value alone"
