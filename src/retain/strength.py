"""How hard to hold: λ chosen on the new task alone, without any old data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from retain.errors import InputError


@dataclass(frozen=True)
class Tried:
    """One strength, the accuracy on the new task that it allowed, and whether that was enough."""

    strength: float
    accuracy: float
    accepted: bool


@dataclass(frozen=True)
class StrengthChoice:
    """What `choose_strength` found.

    Attributes:
        strength: the largest strength tried that was accepted, or else the smallest tried.
        accuracy: what the new task reached with it.
        reference: what the new task reaches when nothing is held.
        accepted: whether `accuracy` is at least (1 − drop) · `reference`.
        tried: everything that was tried, in order.

    Examples:
        >>> import retain
        >>> choice = retain.choose_strength(lambda strength: 0.9 / (1 + strength), start=1.0)
        >>> type(choice) is retain.StrengthChoice, choice.accepted, round(choice.accuracy, 2)
        (True, True, 0.72)
    """

    strength: float
    accuracy: float
    reference: float
    accepted: bool
    tried: tuple[Tried, ...]


def choose_strength(
    train: Callable[[float], float],
    *,
    start: float,
    reference: float | None = None,
    drop: float = 0.2,
    decay: float = 0.5,
    tries: int = 10,
) -> StrengthChoice:
    """The largest strength that leaves the new task at least (1 − drop) of its reference accuracy.

    Starts high and decays: λ ← decay · λ while accuracy(λ) < (1 − drop) · reference. Only data of
    the new task is needed. Source: De Lange et al., *A continual learning survey*, and its public
    code: drop 0.2, halving, ten tries; starts of 400 for EWC and SI, 3 for MAS.

    Args:
        train: trains the new task from the same starting point with the strength that it is given,
            and returns the accuracy on the new task's validation data.
        start: the first strength, so high that it surely holds the old tasks.
        reference: the new task's accuracy without protection; by default `train(0.0)` is asked.
        drop: the part of the reference that may be lost, in [0, 1).
        decay: by what the strength is multiplied after a failure, in (0, 1).
        tries: how many strengths are tried at most.

    Returns:
        The choice and everything that was tried. If no try was good enough, the last one, with
        `accepted=False` and a warning.

    Raises:
        InputError: an argument out of its range, or `train` returned no finite number.

    Examples:
        >>> import retain
        >>> def train(strength):  # yours: from the same start, with this λ
        ...     return 0.9 / (1 + strength)
        >>> choice = retain.choose_strength(train, start=1.0)
        >>> choice.strength, [one.strength for one in choice.tried]
        (0.25, [1.0, 0.5, 0.25])
    """
    _refuse(start=start, drop=drop, decay=decay, tries=tries)
    if reference is None:
        reference = _accuracy(train, 0.0)
    elif not math.isfinite(reference) or reference < 0:
        raise InputError(f"reference={reference!r}; expected an accuracy of at least 0.")
    # accept when A(λ) ≥ (1 − p) · A_reference, up to rounding
    enough = (1 - drop) * reference * (1 - 1e-12)
    tried: list[Tried] = []
    strength = float(start)
    while len(tried) < tries:
        accuracy = _accuracy(train, strength)
        tried.append(Tried(strength, accuracy, accuracy >= enough))
        if tried[-1].accepted:
            break
        strength *= decay
    last = tried[-1]
    if not last.accepted:
        warnings.warn(
            f"No strength from {start:g} down to {last.strength:g} left the new task "
            f"{100 * (1 - drop):g} % of its reference accuracy {reference:g}; the last reached "
            f"{last.accuracy:g}. Start lower, or allow more tries or a larger drop.",
            stacklevel=2,
        )
    return StrengthChoice(last.strength, last.accuracy, reference, last.accepted, tuple(tried))


def _accuracy(train: Callable[[float], float], strength: float) -> float:
    given = train(strength)
    try:
        accuracy = float(given)
    except (TypeError, ValueError):
        accuracy = math.nan
    if not math.isfinite(accuracy):
        raise InputError(
            f"train({strength:g}) returned {given!r}; expected the accuracy on the new task's "
            "validation data, a finite number."
        )
    return accuracy


def _refuse(*, start: float, drop: float, decay: float, tries: int) -> None:
    wrong = []
    if not (math.isfinite(start) and start > 0):
        wrong.append(f"start={start!r}; expected a finite number above 0")
    if not 0 <= drop < 1:
        wrong.append(f"drop={drop!r}; expected at least 0 and below 1")
    if not 0 < decay < 1:
        wrong.append(f"decay={decay!r}; expected between 0 and 1")
    if tries < 1:
        wrong.append(f"tries={tries!r}; expected at least 1")
    if wrong:
        raise InputError(f"choose_strength got {'; '.join(wrong)}.")
