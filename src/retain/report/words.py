"""Numbers as people read them, and the sentence that says how it went."""

from __future__ import annotations

from statistics import fmean

from retain.report.naming import BOUNDS, method_name
from retain.report.results import Results, Sequence, Spread


def percent(value: Spread | None, digits: int = 2) -> str:
    """A fraction over seeds in percent or points: `99.10 ± 0.21`, or `99.10` for one seed."""
    if value is None:
        return "–"
    # Adding 0.0 turns a rounded −0.00 into 0.00.
    mean = round(100 * value.mean, digits) + 0.0
    shown = f"{mean:.{digits}f}".replace("-", "−")
    return shown if value.sd is None else f"{shown} ± {100 * value.sd:.{digits}f}"


def points(value: float, digits: int = 1) -> str:
    """A change of a fraction in points, with its sign: `−0.4`, `+1.2`, `0.0`."""
    change = round(100 * value, digits) + 0.0
    sign = "+" if change > 0 else "−" if change < 0 else ""
    return f"{sign}{abs(change):.{digits}f}"


def seconds(value: float) -> str:
    """A duration: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """A number of bytes: `512 B`, `1.5 kB`, `229 MB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.3g} {units[0]}"


def many(count: int, noun: str) -> str:
    """A count with its noun: `1 seed`, `3 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def summed_up(results: Results) -> str:
    """How much was forgotten, in a sentence or two: "MAS forgot 0.6 points on average; …"."""
    from retain.report import adaptation

    parts = [_unfinished(results)]
    if results.config.get("study") == "memory":
        return " ".join(part for part in [*parts, _kept(results)] if part)
    adapted = adaptation.said(results)
    if adapted:
        return " ".join(part for part in [*parts, adapted] if part)
    forgotten = _forgotten(results.sequences)
    if forgotten:
        hero = "mas" if "mas" in forgotten else _least(forgotten)
        parts.append(_compared(hero, forgotten, results))
        parts.append(_least_of_many(hero, forgotten))
    elif results.with_status("done"):
        parts.append("With a single task there is nothing to forget.")
    return " ".join(part for part in parts if part)


def _kept(results: Results) -> str:
    """What MAS keeps after the last task against the method that keeps most."""
    kept: dict[str, float] = {}
    for sequence in results.sequences:
        for method, variant in sequence.best_by_method().items():
            last = next((run.memory[-1] for run in variant.done if run.memory), {})
            if last.get("model"):
                kept[method] = sum(last.values()) / last["model"]
    if not kept:
        return ""
    tasks = many(len(results.sequences[0].tasks), "task")
    most = max(kept, key=lambda method: kept[method])
    hero = "mas" if "mas" in kept else min(kept, key=lambda method: kept[method])
    said = f"After {tasks} {method_name(hero)} keeps {kept[hero]:.1f} times the network's own bytes"
    return f"{said}; {method_name(most)} {kept[most]:.1f} times." if most != hero else f"{said}."


def _forgotten(sequences: tuple[Sequence, ...]) -> dict[str, float]:
    """Average forgetting by method, over the sequences; only methods that finished them all."""
    each: dict[str, list[float]] = {}
    for sequence in sequences:
        for method, variant in sequence.best_by_method().items():
            value = variant.measure("average_forgetting")
            each.setdefault(method, []).extend([value.mean] if value else [])
    return {method: fmean(means) for method, means in each.items() if len(means) == len(sequences)}


def _least(forgotten: dict[str, float]) -> str:
    candidates = [method for method in forgotten if method not in BOUNDS] or list(forgotten)
    return min(candidates, key=lambda method: forgotten[method])


def _size_of(value: float) -> str:
    return f"{abs(round(100 * value, 1)):.1f}"


def _verb(value: float) -> str:
    return "gained" if round(100 * value, 1) < 0 else "forgot"


def _compared(hero: str, forgotten: dict[str, float], results: Results) -> str:
    own = forgotten[hero]
    sentence = f"{method_name(hero)} {_verb(own)} {_size_of(own)} points on average"
    if len(results.sequences) > 1:
        sentence += f" over {len(results.sequences)} sequences"
    others = [method for method in forgotten if method != hero and method not in BOUNDS]
    rival = "finetune" if "finetune" in forgotten and hero != "finetune" else None
    rival = rival or max(others, key=lambda method: forgotten[method], default=None)
    if rival is None:
        return sentence + "."
    theirs = forgotten[rival]
    verb = "" if _verb(theirs) == _verb(own) else f"{_verb(theirs)} "
    return f"{sentence}; {method_name(rival)} {verb}{_size_of(theirs)}."


def _least_of_many(hero: str, forgotten: dict[str, float]) -> str:
    least = _least(forgotten)
    if len([method for method in forgotten if method not in BOUNDS]) < 3:
        return ""
    aside = "Joint training aside, " if "joint" in forgotten else ""
    none_less = _size_of(forgotten[hero]) == _size_of(forgotten[least])
    said = "no other method forgot less" if none_less else f"{method_name(least)} forgot least"
    return aside + (said if aside else said[0].upper() + said[1:]) + "."


def _unfinished(results: Results) -> str:
    done, runs = len(results.with_status("done")), len(results.runs)
    failed = len(results.with_status("failed"))
    if not runs:
        return "Nothing was run yet."
    if done == runs:
        return ""
    said = f"{done} of {many(runs, 'run')} finished" if done else "No run finished"
    return f"{said}, {failed} failed." if failed else f"{said} so far."
