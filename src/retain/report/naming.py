"""What methods, variants and tasks are called, and the order in which they are shown."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from retain.methods import METHODS as ALL
from retain.report.results import Run, Sequence, Variant

# In the order of the paper's tables, the two bounds first, then what people do instead.
METHODS = {
    "finetune": "FineTune",
    "joint": "Joint",
    "lwf": "LwF",
    "ebll": "EBLL",
    "imm-mean": "IMM (mean)",
    "imm-mode": "IMM (mode)",
    "ewc": "EWC",
    "online-ewc": "Online EWC",
    "si": "SI",
    "mas": "MAS",
    "local-mas": "l-MAS",
    "l2-sp": "L2-SP",
    "low-lr": "Low LR",
    "freeze": "Freeze",
    "replay": "Replay",
    "kl": "KL",
    "lora": "LoRA",
    "wise-ft": "WiSE-FT",
    "model-soup": "Model soup",
}
BOUNDS = ("finetune", "joint")  # the lower and the upper one: never marked as best


def method_name(method: str) -> str:
    """The name that the paper uses, or the method's own where the paper has none."""
    return METHODS.get(method, method)


def knob_name(method: str) -> str:
    """What is turned to trade old for new: λ, or an option's name."""
    knob = ALL[method].knob if method in ALL else None
    return "λ" if knob == "strength" else knob or "value"


SLUG = 60  # characters


def slug(name: str) -> str:
    """A name for ids and files: of a-z, 0-9 and -, short, and another one for another name.

    Where letters or digits were left out, the beginning of a digest of the name stands behind it.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    lost = [c for c in name if not c.isascii() or unicodedata.category(c) == "Cc"]
    if plain and len(plain) <= SLUG and not lost:
        return plain
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain[:SLUG].strip('-')}-{digest}".strip("-")


def number(value: float) -> str:
    """A strength as people write it: 0.01, 1, 400, 1e+06."""
    return f"{value:g}"


def in_sequences(runs: Iterable[Run]) -> tuple[Sequence, ...]:
    """The runs by their tasks, and in each sequence by what differs beside the seed."""
    by_tasks: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        by_tasks.setdefault(run.tasks, []).append(run)
    return tuple(Sequence(tasks, _variants(own)) for tasks, own in by_tasks.items())


# method, Ω on, classes, form, λ, another knob
Key = tuple[str, str | None, tuple[str, ...], str | None, str, float | None]
NAMED_CLASSES = 3  # more are counted


def _variants(runs: list[Run]) -> tuple[Variant, ...]:
    order = {method: place for place, method in enumerate(METHODS)}
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        about = (run.importance_on, run.importance_classes, run.form, _strength(run), run.knob)
        key = (run.method, *about)
        groups.setdefault(key, []).append(run)
    keys = sorted(
        groups,
        key=lambda key: (order.get(key[0], len(order)), key[0], key[3] or ""),
    )
    return tuple(Variant(key[0], _label(key, keys), tuple(groups[key])) for key in keys)


def _strength(run: Run) -> str:
    """λ as asked for: one that was searched for may differ between seeds, and is one variant."""
    if run.search:
        return "auto"
    return "" if run.strength is None else number(run.strength)


def _label(key: Key, keys: list[Key]) -> str:
    """The method's name, and only what tells it from the same method's other variants."""
    method, importance_on, classes, form, strength, knob = key
    others = [other for other in keys if other[0] == method]
    parts = [method_name(method)]
    if importance_on and len({other[1] for other in others}) > 1:
        parts.append(f"Ω on {importance_on}")
    if len({other[2] for other in others}) > 1:
        parts.append(f"Ω on {class_names(classes)}")
    if form and len({other[3] for other in others}) > 1:
        parts.append(form)
    if strength and len({other[4] for other in others}) > 1:
        parts.append(f"λ = {strength}")
    if knob is not None:
        parts.append(f"{knob_name(method)} = {number(knob)}")
    return ", ".join(parts)


def class_names(classes: tuple[str, ...]) -> str:
    """Classes that Ω is computed on, in few words: `all classes`, `0 and 1`, `7 classes`."""
    if not classes:
        return "all classes"
    if len(classes) > NAMED_CLASSES:
        return f"{len(classes)} classes"
    return " and ".join([", ".join(classes[:-1]), classes[-1]] if classes[1:] else classes)
