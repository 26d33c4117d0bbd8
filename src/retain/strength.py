"""How hard to hold: λ chosen on the new task alone, without any old data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retain.errors import InputError
from retain.header import is_count, is_number, shown


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
        strength: the first strength tried that was accepted, which is the largest; or else 0, with
            which nothing is held.
        accuracy: what the new task reached with it.
        reference: what the new task reaches when nothing is held.
        accepted: whether `accuracy` is near enough to `reference`.
        tried: everything that was tried, in order.

    Examples:
        >>> import retain
        >>> choice = retain.choose_strength(lambda strength: 0.9 / (1 + strength), start=1.0)
        >>> type(choice) is retain.StrengthChoice, choice.accepted, round(choice.accuracy, 2)
        (True, True, 0.9)
    """

    strength: float
    accuracy: float
    reference: float
    accepted: bool
    tried: tuple[Tried, ...]


def choose_strength(
    train: Callable[[float], float | Sequence[float]],
    *,
    start: float,
    reference: float | Sequence[float] | None = None,
    samples: int | Sequence[int] | None = None,
    drop: float = 0.005,
    decay: float = 0.3,
    tries: int = 10,
) -> StrengthChoice:
    """The largest strength with which the new task is learned as well as with none, within noise.

    Starts high and decays: λ ← decay · λ while A(λ) < A_reference − max(drop · A_reference, s),
    where s is one standard error of an accuracy on so many samples. Only data of the new task is
    needed. After De Lange et al., *A continual learning survey*, whose public code halves λ while
    a fifth of the reference is lost: what is lost of the new task counts in the end as well, and
    so much of it is seldom kept of the old ones (docs/methods.md).

    Args:
        train: trains the new task from the same starting point with the strength that it is given,
            and returns the accuracy on the new task's validation data; or several, such as that on
            its training data as well, of which none may be lost.
        start: the first strength, so high that it surely holds the old tasks.
        reference: the new task's accuracy without protection; by default `train(0.0)` is asked.
        samples: how many samples each accuracy is measured on; None where it has no noise.
        drop: the part of the reference that may be lost, in [0, 1).
        decay: by what the strength is multiplied after a failure, in (0, 1).
        tries: how many strengths are tried at most.

    Returns:
        The choice and everything that was tried. If no try was good enough, 0, with
        `accepted=False` and a warning.

    Raises:
        InputError: an argument out of its range, or `train` returned no finite number.

    Examples:
        >>> import retain
        >>> def train(strength):  # yours: from the same start, with this λ
        ...     return 0.9 / (1 + strength)
        >>> choice = retain.choose_strength(train, start=1.0)
        >>> round(choice.strength, 5), [round(one.strength, 5) for one in choice.tried]
        (0.00243, [1.0, 0.3, 0.09, 0.027, 0.0081, 0.00243])
    """
    if not callable(train):
        raise InputError(f"choose_strength got train={shown(train)}; expected a function.")
    _refuse(start=start, samples=samples, drop=drop, decay=decay, tries=tries)
    if reference is None:
        reference = _accuracy(train, 0.0)
    references = reference if isinstance(reference, (list, tuple)) else (reference,)
    if not all(map(is_number, references)) or not references:
        raise InputError(f"reference={shown(reference)}; expected an accuracy of at least 0.")
    numbers = samples if isinstance(samples, (list, tuple)) else (samples,) * len(references)
    # accept when A(λ) ≥ A_reference − max(p · A_reference, s), up to rounding
    enough = [
        (one - max(drop * one, _standard_error(one, n))) * (1 - 1e-12)
        for one, n in zip(references, numbers)
    ]
    tried: list[Tried] = []
    strength = float(start)
    while len(tried) < tries:
        reached = _accuracy(train, strength)
        accepted = all(a >= least for a, least in zip(reached, enough))
        tried.append(Tried(strength, reached[0], accepted))
        if tried[-1].accepted:
            break
        strength *= decay
    last = tried[-1]
    if not last.accepted:
        warnings.warn(
            f"No strength from {start:g} down to {last.strength:g} left the new task near enough "
            f"to its reference accuracy {references[0]:g}; the last reached {last.accuracy:g}. "
            "Nothing is held then, with 0. Start lower, or allow more tries or a larger drop.",
            stacklevel=2,
        )
        return StrengthChoice(0.0, references[0], references[0], False, tuple(tried))
    return StrengthChoice(last.strength, last.accuracy, references[0], True, tuple(tried))


def _standard_error(accuracy: float, samples: int | None) -> float:
    """Of an accuracy that was measured on so many samples, as if two more were half right."""
    if samples is None:
        return 0.0
    # p̃ = (np + 1)/(n + 2), s = √(p̃ (1 − p̃)/(n + 2))   (Agresti & Coull 1998, z = √2)
    p = (samples * min(accuracy, 1.0) + 1) / (samples + 2)
    return math.sqrt(p * (1 - p) / (samples + 2))


def _accuracy(
    train: Callable[[float], float | Sequence[float]], strength: float
) -> tuple[float, ...]:
    given = train(strength)
    several = given if isinstance(given, (list, tuple)) else (given,)
    try:
        reached = tuple(map(float, several))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        reached = ()
    if not reached or not all(map(math.isfinite, reached)):
        raise InputError(
            f"train({strength:g}) returned {shown(given)}; expected the accuracy on the new task's "
            "validation data, a finite number."
        )
    return reached


def _refuse(
    *,
    start: float,
    samples: int | Sequence[int] | None,
    drop: float,
    decay: float,
    tries: int,
) -> None:
    wrong = []
    numbers = list(samples) if isinstance(samples, (list, tuple)) else [samples]
    if samples is not None and not (numbers and all(is_count(n) and n for n in numbers)):
        wrong.append(f"samples={shown(samples)}; expected at least 1, or None")
    if not (is_number(start) and start > 0):
        wrong.append(f"start={shown(start)}; expected a finite number above 0")
    if not (is_number(drop) and drop < 1):
        wrong.append(f"drop={shown(drop)}; expected at least 0 and below 1")
    if not (is_number(decay) and 0 < decay < 1):
        wrong.append(f"decay={shown(decay)}; expected between 0 and 1")
    if not (is_count(tries) and tries):
        wrong.append(f"tries={shown(tries)}; expected at least 1")
    if wrong:
        raise InputError(f"choose_strength got {'; '.join(wrong)}.")
