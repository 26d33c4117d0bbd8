"""How numbers and names are written: percent, points, sizes, methods, classes, ids."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from retain.experiment.metrics import Spread
from retain.methods import METHODS as ALL

# In the order of the paper's tables, the two bounds first, then what people do instead.
METHODS = {name: kind.title for name, kind in ALL.items()}
BOUNDS = ("finetune", "joint")  # the lower and the upper one: never marked as best


def capitalised(said: str) -> str:
    """The same, with its first letter large."""
    return said[:1].upper() + said[1:]


def method_name(method: str) -> str:
    """The title of a method, or the name as it stands where this version has no such method."""
    return METHODS.get(method, method)


def knob_name(method: str) -> str:
    """What is turned to trade old for new: λ, or an option's name."""
    knob = ALL[method].knob if method in ALL else None
    return "λ" if knob == "strength" else knob or "value"


NAMED_CLASSES = 3  # more are counted
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


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: `A`, `A and B`, `A, B and C`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else list(names))


def class_names(classes: tuple[str, ...]) -> str:
    """Classes that Ω is computed on, in few words: `all classes`, `0 and 1`, `7 classes`."""
    if not classes:
        return "all classes"
    return f"{len(classes)} classes" if len(classes) > NAMED_CLASSES else listed(classes)
