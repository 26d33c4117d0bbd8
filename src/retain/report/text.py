"""The words around the numbers: what was run and how it went, in sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from retain.report.format import BOUNDS, METHODS, capitalised, listed, many, method_name, number
from retain.report.tables import by_class
from retain.report.tables.equal_accuracy import conclusion, is_comparison
from retain.report.variants import Sequence, ShownResults, ShownRun

LISTED = 12  # clauses in a notice


@dataclass(frozen=True)
class Notice:
    """Something that has to be known before any number is read."""

    label: str
    text: str


def title(results: ShownResults) -> str:
    """The title that was asked for, or that a study has, else the methods and the tasks."""
    config = results.config
    if config.get("title"):
        return str(config["title"])
    names = list(dict.fromkeys(run.method for run in results.runs)) or config.get("methods") or []
    known = [method_name(name) for name in (*METHODS, *names) if name in names]
    said = list(dict.fromkeys(known))
    first = f"{len(said)} methods" if len(said) > 3 else listed(said) if said else "No runs yet"
    return f"{first} on {_tasks(config.get('tasks'))}"


def notices(results: ShownResults) -> list[Notice]:
    """Quick runs, stand-in data, and runs that are not finished."""
    config, said = results.config, []
    if config.get("sample"):
        said.append(
            Notice(
                "SAMPLE.",
                "This page shows what a report looks like. Its numbers are "
                f"{config['sample']}, not a result of yours.",
            )
        )
    if config.get("quick"):
        said.append(
            Notice(
                "Quick run.",
                "A reduced version, to see that everything works. "
                "Its numbers say little about the full protocol.",
            )
        )
    if config.get("stand_in"):
        said.append(
            Notice(
                "Stand-in data.",
                f"Run on {_tasks(config['stand_in'])} in place of the "
                "paper's data sets. Not comparable with the paper's numbers.",
            )
        )
    said += _about_the_study(config)
    running, failed = results.with_status("running"), results.with_status("failed")
    if running:
        said.append(
            Notice(
                "Not finished.",
                f"{many(len(running), 'run')} of {len(results.runs)} "
                "still had tasks to learn when this page was made; only finished runs "
                "are averaged.",
            )
        )
    if failed:
        said.append(
            Notice(
                "Failed.",
                f"{many(len(failed), 'run')} of {len(results.runs)} failed; "
                "what they said is at the end of this page.",
            )
        )
    return said


def _about_the_study(config: Mapping[str, Any]) -> list[Notice]:
    """Data that are not as published, another protocol, and parts that were not begun yet."""
    said = []
    altered, departures = config.get("altered") or {}, list(config.get("departures") or [])
    if altered:
        sets = [f"{name} ({what})" for name, what in altered.items()]
        said.append(
            Notice(
                "Not the data as published.",
                f"Other counts in {', '.join(sets)}. The paper's numbers are left out beside them.",
            )
        )
    if departures:
        listed = "; ".join(str(one) for one in departures[:LISTED])
        said.append(
            Notice(
                "Not the paper's protocol.",
                f"{capitalised(listed)}. A difference from the paper's numbers says "
                "little about either.",
            )
        )
    waiting = list(config.get("waiting") or [])
    if waiting:
        said.append(Notice("Not begun yet.", f"{'; '.join(map(str, waiting))}."))
    return said


def corner(results: ShownResults) -> str:
    """The notices that a picture must carry when it leaves the page."""
    config = results.config
    marks = {"sample": "sample", "quick": "quick run", "stand_in": "stand-in data"}
    return ", ".join(mark for key, mark in marks.items() if config.get(key))


def facts(results: ShownResults) -> list[tuple[str, str]]:
    """Name and value of what was asked for and what it ran with; unknown things are left out."""
    config = results.config
    optimizer = {"sgd": "SGD", "adam": "Adam"}.get(str(config.get("optimizer")))
    training = [
        optimizer or config.get("optimizer"),
        f"learning rate {number(config['lr'])}" if _is_number(config.get("lr")) else None,
        _counted(config.get("epochs"), "epoch"),
        f"batches of {config['batch_size']}" if config.get("batch_size") else None,
    ]
    seeds = sorted({run.seed for run in results.runs}) or config.get("seeds") or []
    given = [
        ("Tasks", _tasks(config.get("tasks"))),
        ("Splits", str(config.get("splits") or "")),
        ("Scenario", str(config.get("scenario") or "").capitalize()),
        ("Model", str(config.get("model") or "") + _weights(config)),
        ("Training", ", ".join(str(part) for part in training if part)),
        ("Images", ", ".join(part for part in _images(config) if part)),
        ("Strength λ", _strengths(results.runs)),
        ("Seeds", f"{', '.join(map(str, seeds))} (n = {len(seeds)})" if seeds else ""),
        ("Device", str(config["device"]) if config.get("device") not in (None, "auto") else ""),
        ("Versions", ", ".join(f"{n} {v}" for n, v in results.versions.items())),
    ]
    return [(name, value) for name, value in given if value]


def listing(results: ShownResults) -> str:
    """The whole config as JSON."""
    return json.dumps(results.config, indent=2, ensure_ascii=False, default=str)


def run_name(run: ShownRun) -> str:
    """A run by its method, λ, seed and tasks."""
    parts = [method_name(run.method)]
    parts += [f"λ = {number(run.strength)}"] if run.strength is not None else []
    parts += [f"seed {run.seed}", f"after {run.learned} of {many(len(run.tasks), 'task')}"]
    return ", ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _counted(value: Any, noun: str) -> str | None:
    return many(value, noun) if isinstance(value, int) else str(value) if value else None


def _tasks(spec: Any) -> str:
    """What was asked for without the paths, which stand in the listing of everything."""
    if not spec:
        return "these tasks"
    said = re.sub(r"=(?!\d+$)[^,]*", "", str(spec))
    kind, _, names = said.partition(":")
    if kind == "folders":
        return f"the folders {listed(names.split(','))}"
    return names.replace(",", ", ") if kind == "paper" and names else said


def _images(config: Mapping[str, Any]) -> Iterator[str]:
    """What was made of image files: their size, how many of them, what training does to them."""
    side, few = config.get("image_size"), config.get("samples_per_class")
    yield f"{side} × {side} pixels" if side else ""
    yield f"{few} of each class" if few else ""
    yield "random crops and flips" if config.get("augmentation") == "crop-flip" else ""


def _weights(config: Mapping[str, Any]) -> str:
    return f", weights: {config['weights']}" if config.get("weights") else ""


def _strengths(runs: tuple[ShownRun, ...]) -> str:
    """Per method the λ that were used, and whether they were searched for."""
    used: dict[str, dict[str, None]] = {}
    for run in runs:
        if run.strength is not None:
            said = number(run.strength) + (" (searched)" if run.strength_search else "")
            used.setdefault(run.method, {})[said] = None
    return "; ".join(f"{method_name(method)} {', '.join(s)}" for method, s in used.items())


# ---- the sentence at the top ----


def summed_up(results: ShownResults) -> str:
    """How much was forgotten, in a sentence or two: "MAS forgot 0.6 points on average; …"."""
    parts = [_unfinished(results)]
    if results.config.get("study") == "memory":
        return " ".join(part for part in [*parts, _kept(results)] if part)
    adapted = by_class.said(results)
    if adapted:
        return " ".join(part for part in [*parts, adapted] if part)
    if is_comparison(results) and (
        concluded := [*filter(None, map(conclusion, results.sequences))]
    ):
        return " ".join(part for part in [*parts, *concluded] if part)
    forgotten = _forgotten(results.sequences)
    if forgotten:
        hero = "mas" if "mas" in forgotten else _least(forgotten)
        parts.append(_compared(hero, forgotten, results))
        parts.append(_least_of_many(hero, forgotten))
    elif results.with_status("done"):
        parts.append("With a single task there is nothing to forget.")
    return " ".join(part for part in parts if part)


def _kept(results: ShownResults) -> str:
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


def _compared(hero: str, forgotten: dict[str, float], results: ShownResults) -> str:
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
    return capitalised(aside + said) + "."


def _unfinished(results: ShownResults) -> str:
    done, runs = len(results.with_status("done")), len(results.runs)
    failed = len(results.with_status("failed"))
    if not runs:
        return "Nothing was run yet."
    if done == runs:
        return ""
    said = f"{done} of {many(runs, 'run')} finished" if done else "No run finished"
    return f"{said}, {failed} failed." if failed else f"{said} so far."
