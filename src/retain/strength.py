"""How hard to hold: λ chosen on the new task alone, without any old data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from retain.drift import Drift
from retain.errors import InputError
from retain.header import is_count, is_number, shown

# The share of the old tasks that goes with a relative drift of 1, as a rule of thumb: permuted
# digits lose from 1.2 to 3 times the drift, split digits 0.3 times.
LOST_PER_DRIFT = 1.5
START = 10.0  # nats that the weights of free training shall cost at first: more than any loss saves
CLOSE = 1e-3  # a share of a task: to save less than that, no further strength is tried


@dataclass(frozen=True)
class Trial:
    """What one training of the new task came to.

    Attributes:
        accuracy: on validation data of the new task; or several, such as that on its training data
            as well. With few samples `retain.strength.expected_accuracy` is finer than a count.
        forgotten: the share of what the old tasks are able to do that is expected to be lost.
        penalty: what the penalty comes to with λ = 1 at the end, such as Σ Ω (θ − θ*)². Of the
            training without protection it says which strengths are worth a try.

    Examples:
        >>> import retain
        >>> retain.strength.Trial(0.9, forgotten=0.2)
        Trial(accuracy=0.9, forgotten=0.2, penalty=None)
    """

    accuracy: float | Sequence[float]
    forgotten: float
    penalty: float | None = None

    @classmethod
    def of(cls, accuracy: float | Sequence[float], drift: Drift) -> Trial:
        """The trial that ended with this drift of a memory."""
        return cls(accuracy, min(1.0, LOST_PER_DRIFT * drift.relative), drift.penalty)


Reached = float | Sequence[float] | tuple[float | Sequence[float], Drift] | Trial


@dataclass(frozen=True)
class Tried:
    """One strength, the accuracy on the new task that it allowed, and whether that was enough.

    `forgotten` is the share of the old tasks that was expected to be lost, where `train` said so;
    then `accepted` is the one strength that was chosen.
    """

    strength: float
    accuracy: float
    accepted: bool
    forgotten: float | None = None


@dataclass(frozen=True)
class StrengthChoice:
    """What `choose_strength` found.

    Attributes:
        strength: the one that was chosen; 0, with which nothing is held, if none was any better.
        accuracy: what the new task reached with it.
        reference: what the new task reaches when nothing is held.
        accepted: whether something is held.
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
    train: Callable[[float], Reached],
    *,
    start: float | None = None,
    reference: Reached | None = None,
    samples: int | Sequence[int | None] | None = None,
    chance: float = 0.0,
    drop: float = 0.005,
    decay: float = 0.3,
    tries: int = 10,
    old_tasks: int = 1,
) -> StrengthChoice:
    """The strength that is expected to lose least of the new task and of the old ones together.

    Only data of the new task is needed, and the drift of the old ones' memory: `train` returns
    `(accuracy, memory.drift())`. Strengths are tried from one that surely holds downwards,
    λ ← decay · λ, and the choice is the least of

        (A_reference − s − A(λ)) / (A_reference − chance)  +  old_tasks · 1.5 · drift(λ).relative

    where s is one standard error of the difference of both accuracies, each on so many samples:
    the part of the new task that is given up, and the part of the old tasks that is expected to be
    forgotten. Training without protection is among the candidates. The search ends where the second
    term alone is as much as the best sum so far, for it only grows. Neither term depends on the
    scale of the outputs or of Ω, nor does the first strength, λ = 10 / Σ Ω (θ − θ*)² at the weights
    of free training: outputs ten times as large lead to the same choice. Where that strength leaves
    more than half of what is forgotten without any, as beside a loss that is a sum over the batch
    and not a mean, it is raised until it does not, or gives up more than there is to forget.

    If `train` returns an accuracy alone, nothing is known of the old tasks. Then the choice is the
    first, and largest, strength with which the new task is learned as well as with none, within
    noise: A(λ) ≥ A_reference − max(drop · A_reference, s), s of A_reference alone, after De Lange
    et al., *A continual learning survey*.

    Args:
        train: trains the new task from the same starting point with the strength that it is given,
            and returns the accuracy on the new task's validation data; or several, such as that on
            its training data as well, of which the one that loses most counts. With it the drift,
            or both as a `Trial`.
        start: the first strength, so high that it surely holds the old tasks; by default it is
            taken from the drift of training without protection.
        reference: what `train(0.0)` would return; by default it is asked.
        samples: how many samples each accuracy is measured on; None where it has no noise.
        chance: the new task's accuracy by guessing.
        drop: the part of the reference that may be lost, in [0, 1), where there is no drift.
        decay: by what the strength is multiplied from one try to the next, in (0, 1).
        tries: how many strengths are tried at most.
        old_tasks: how many tasks the memory holds, each of which counts as much as the new one.

    Returns:
        The choice and everything that was tried. Its strength is 0, with `accepted=False`, if none
        was good enough; where there is no drift, with a warning.

    Raises:
        InputError: an argument out of its range, no start where there is no drift, or `train`
            returned no finite number.

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
    _refuse(
        start=start,
        samples=samples,
        chance=chance,
        drop=drop,
        decay=decay,
        tries=tries,
        old_tasks=old_tasks,
    )
    free = _understood(train(0.0), "train(0)") if reference is None else _reference(reference)
    numbers: Sequence[int | None] = (
        samples if isinstance(samples, Sequence) else (samples,) * len(free.accuracies)
    )
    noise = [_standard_error(one, n) for one, n in zip(free.accuracies, numbers)]

    def trial(strength: float) -> tuple[float, _Understood]:
        return strength, _understood(train(strength), f"train({strength:g})")

    def trials(first: float) -> Iterator[tuple[float, _Understood]]:
        yield from (trial(first * decay**count) for count in range(tries))

    def raised(first: float) -> list[tuple[float, _Understood]]:
        """Trials from one that holds down to `first`, which is as large as it was thought."""
        found = [trial(first)]
        while len(found) < tries and _lost(found[0][1]) > _lost(free) / 2:
            if _given_up(found[0][1], free, numbers, chance) > old_tasks * _lost(free):
                break
            found.insert(0, trial(found[0][0] / decay))
        return found

    if free.forgotten is None:
        if start is None:
            raise InputError(
                "choose_strength got no start; without a drift it does not know which strengths "
                "are large. Give start=…, or let train return (accuracy, memory.drift())."
            )
        return _largest(trials(start), free, noise, drop)
    if start is None:
        if free.penalty is None:
            raise InputError(
                "choose_strength got no start, and train(0) returned no penalty to take it from. "
                "Give start=…"
            )
        if not free.penalty:  # nothing that is held has moved: there is nothing to choose
            return StrengthChoice(0.0, free.accuracies[0], free.accuracies[0], False, ())
        # λ · Σ Ω (θ_free − θ*)² = 10 nats
        start = START / free.penalty
        above = raised(start)
        below = (trial(start * decay**count) for count in range(1, tries))
        return _least_lost(chain(above, below), free, numbers, chance, old_tasks)
    return _least_lost(trials(start), free, numbers, chance, old_tasks)


def _lost(trial: _Understood) -> float:
    """What is expected to be lost of the old tasks; all, where nothing is said."""
    return 1.0 if trial.forgotten is None else trial.forgotten


@dataclass(frozen=True)
class _Understood:
    """A trial, however it was returned."""

    accuracies: tuple[float, ...]
    forgotten: float | None = None
    penalty: float | None = None


def _given_up(
    trial: _Understood, free: _Understood, samples: Sequence[int | None], chance: float
) -> float:
    """The part of the new task that is learned without protection, and was not in this trial."""
    # max over accuracies of (A_reference − s − A(λ)) / (A_reference − chance), at least 0
    parts = []
    for one, a, n in zip(free.accuracies, trial.accuracies, samples):
        # s² = s_reference² + s(λ)²: both are measured
        s = math.hypot(_standard_error(one, n), _standard_error(a, n))
        parts.append(max(0.0, one - s - a) / max(one - chance, s, 1e-12))
    return max(parts)


def _least_lost(
    trials: Iterable[tuple[float, _Understood]],
    free: _Understood,
    samples: Sequence[int | None],
    chance: float,
    old_tasks: int,
) -> StrengthChoice:
    """The strength, 0 included, with the least of what is given up and expected to be lost."""
    least, chosen, found = old_tasks * _lost(free), (0.0, free), []
    smallest = float("inf")  # of what was tried with a strength
    for strength, trial in trials:
        forgotten = _lost(trial)
        found.append((strength, trial, forgotten))
        lost = _given_up(trial, free, samples, chance) + old_tasks * forgotten
        smallest = min(smallest, lost)
        if lost < least:
            least, chosen = lost, (strength, trial)
        if old_tasks * forgotten >= smallest - CLOSE:  # the less is held, the more is forgotten
            break
    tried = tuple(Tried(s, t.accuracies[0], s == chosen[0], f) for s, t, f in found)
    accuracy = chosen[1].accuracies[0]
    return StrengthChoice(chosen[0], accuracy, free.accuracies[0], chosen[0] > 0, tried)


def _largest(
    trials: Iterator[tuple[float, _Understood]],
    free: _Understood,
    noise: Sequence[float],
    drop: float,
) -> StrengthChoice:
    """The first strength with which the new task is learned as well as with none."""
    # accept when A(λ) ≥ A_reference − max(p · A_reference, s), up to rounding
    enough = [(one - max(drop * one, s)) * (1 - 1e-12) for one, s in zip(free.accuracies, noise)]
    reference, tried = free.accuracies[0], []
    for strength, trial in trials:
        accepted = all(a >= least for a, least in zip(trial.accuracies, enough))
        tried.append(Tried(strength, trial.accuracies[0], accepted))
        if accepted:
            return StrengthChoice(strength, tried[-1].accuracy, reference, True, tuple(tried))
    first, last = tried[0], tried[-1]
    warnings.warn(
        f"No strength from {first.strength:g} down to {last.strength:g} left the new task near "
        f"enough to its reference accuracy {reference:g}; the last reached {last.accuracy:g}. "
        "Nothing is held then, with 0. Start lower, or allow more tries or a larger drop.",
        stacklevel=3,
    )
    return StrengthChoice(0.0, reference, reference, False, tuple(tried))


def _standard_error(accuracy: float, samples: int | None) -> float:
    """Of an accuracy that was measured on so many samples, as if two more were half right."""
    if samples is None:
        return 0.0
    # p̃ = (np + 1)/(n + 2), s = √(p̃ (1 − p̃)/(n + 2))   (Agresti & Coull 1998, z = √2)
    p = (samples * min(accuracy, 1.0) + 1) / (samples + 2)
    return math.sqrt(p * (1 - p) / (samples + 2))


def _understood(given: object, where: str) -> _Understood:
    """What a training returned.

    Raises:
        InputError: no finite accuracy, or no finite forecast where there is one.
    """
    trial = given
    if isinstance(given, (list, tuple)) and len(given) == 2 and isinstance(given[1], Drift):
        trial = Trial.of(*given)
    accuracy = trial.accuracy if isinstance(trial, Trial) else trial
    several = accuracy if isinstance(accuracy, (list, tuple)) else (accuracy,)
    rest = (trial.forgotten, trial.penalty or 0.0) if isinstance(trial, Trial) else ()
    try:
        reached, more = tuple(map(float, several)), tuple(map(float, rest))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        reached, more = (), ()
    if not reached or not all(map(math.isfinite, (*reached, *more))):
        raise InputError(
            f"{where} returned {shown(given)}; expected the accuracy on the new task's validation "
            "data, a finite number, or (accuracy, memory.drift())."
        )
    if isinstance(trial, Trial):
        return _Understood(reached, more[0], trial.penalty)
    return _Understood(reached)


def _reference(given: object) -> _Understood:
    bare = given if isinstance(given, (list, tuple)) else (given,)
    ours = isinstance(given, Trial) or any(isinstance(one, Drift) for one in bare)
    if not ours and not (bare and all(map(is_number, bare))):
        raise InputError(f"reference={shown(given)}; expected an accuracy of at least 0.")
    return _understood(given, "reference")


def _refuse(
    *,
    start: float | None,
    samples: int | Sequence[int | None] | None,
    chance: float,
    drop: float,
    decay: float,
    tries: int,
    old_tasks: int,
) -> None:
    wrong = []
    numbers = list(samples) if isinstance(samples, (list, tuple)) else [samples]
    if samples is not None and not (
        numbers and all(n is None or (is_count(n) and n) for n in numbers)
    ):
        wrong.append(f"samples={shown(samples)}; expected at least 1, or None")
    if start is not None and not (is_number(start) and start > 0):
        wrong.append(f"start={shown(start)}; expected a finite number above 0")
    if not (is_number(chance) and chance < 1):
        wrong.append(f"chance={shown(chance)}; expected at least 0 and below 1")
    if not (is_number(drop) and drop < 1):
        wrong.append(f"drop={shown(drop)}; expected at least 0 and below 1")
    if not (is_number(decay) and 0 < decay < 1):
        wrong.append(f"decay={shown(decay)}; expected between 0 and 1")
    if not (is_count(tries) and tries):
        wrong.append(f"tries={shown(tries)}; expected at least 1")
    if not (is_count(old_tasks) and old_tasks):
        wrong.append(f"old_tasks={shown(old_tasks)}; expected at least 1")
    if wrong:
        raise InputError(f"choose_strength got {'; '.join(wrong)}.")


def margins(outputs: Tensor, classes: Tensor) -> Tensor:
    """[n] of outputs [n, c]: that of each sample's class, less the largest of the other classes.

    Above 0 where the class is the one that is named.

    Raises:
        InputError: other shapes than these.

    Examples:
        >>> from retain.strength import margins
        >>> outputs = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
        >>> margins(outputs, torch.tensor([0, 1]))
        tensor([ 2., -2.])
    """
    if outputs.ndim != 2 or classes.shape != outputs.shape[:1] or not len(outputs):
        raise InputError(
            f"Margins of outputs {shown(outputs)} for classes {shown(classes)}; expected outputs "
            "[samples, classes] and a class for each sample."
        )
    at = classes.long().unsqueeze(1)
    others = outputs.scatter(1, at, -torch.inf).amax(1)
    return outputs.gather(1, at).squeeze(1) - others


def expected_accuracy(outputs: Tensor, labels: Tensor) -> float:
    """The accuracy to be expected of samples with such margins: Φ(mean / standard deviation).

    As if margins were normal. Ten samples tell networks apart by it that get the same nine right,
    and it depends neither on the scale of the outputs nor, like a mean probability, on how sure
    the network is. Between two trainings on the same samples its differences follow those of
    accuracy on many; as an accuracy by itself it is only near. 0 where an output is no number.

    Args:
        outputs: [n, c] of n samples, before or after the softmax.
        labels: [n], the class of each.

    Raises:
        InputError: other shapes than these.

    Examples:
        >>> from retain.strength import expected_accuracy
        >>> outputs = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> round(expected_accuracy(outputs, torch.tensor([0, 0, 1])), 3)
        0.993
        >>> round(expected_accuracy(outputs, torch.tensor([0, 0, 0])), 3)
        0.5
    """
    far = margins(outputs.detach().double(), labels)
    if outputs.shape[1] == 1:
        return 1.0  # there is nothing to take it for
    if not far.isfinite().all():
        return 0.0
    # P(margin > 0) = Φ(μ/σ)
    spread = far.std(correction=0).clamp(min=torch.finfo(far.dtype).tiny)
    return float(torch.special.ndtr(far.mean() / spread))
