"""λ chosen on a new task, without old data: what is tried, and what is kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from torch import Tensor

from retain.errors import NonFiniteError
from retain.experiment.foresight import Foresight
from retain.experiment.machine import start_drawing
from retain.experiment.record import TriedStrength
from retain.experiment.stage import Stage
from retain.experiment.train import learn
from retain.methods import Method
from retain.methods.finetune import FineTune, FineTuneOptions
from retain.strength import StrengthChoice, Trial, choose_strength, expected_accuracy
from retain.tasks import TaskSequence

# Where the method says nothing of what its penalty comes to: nats beside those of the task's loss.
START = 10.0
DECAY = 0.3
VALIDATION = 0.1  # of a task's training data, where it has no validation data of its own
ENOUGH = 500  # validation samples, of which one standard error is about a point or less


def choose(
    method: Method[Any],
    index: int,
    stage: Stage,
    *,
    seed: int,
    foresight: Foresight,
    earlier: Sequence[float],
) -> tuple[float, list[TriedStrength]]:
    """The strength that was chosen, and what was tried; leaves `method` trained on task `index`.

    Fine-tuning on the new task is the reference. The first strength is one with which the weights
    that fine-tuning ends with would cost 10 nats. No data of an old task is looked at: what is
    expected to be lost of them is what `foresight` says, each task counting as much as the new one.
    What is given up of that is read from margins, `expected_accuracy`: all trainings are measured
    on the same samples, so that small differences are real ones. Where validation data is little,
    the task's training data counts as well, and what falls more decides. Validation data is the
    task's own, or cut from its training data. In the end the task is learned from all of them, with
    the geometric mean of what was chosen on this task and on earlier ones, each as a part of the
    first λ that was tried there, which has no dimension: a choice on few data is a noisy one.
    Where none is better than nothing, and something was held before, the smallest that was tried
    stands for it.
    """
    network, whole = method.network, stage.sequence
    task = whole.tasks[index].with_validation(VALIDATION)
    assert task.val is not None
    judged = [task.val] if len(task.val) >= ENOUGH else [task.val, task.train]
    head = 0 if network.shared_head else index
    first, kept = _copy(network.state_dict()), _copy(method.state_dict())
    foresight.begin(network, index, stage)

    part = replace(whole, tasks=(*whole.tasks[:index], task, *whole.tasks[index + 1 :]))

    def trained(learner: Method[Any], on: TaskSequence) -> None:
        steps = learner.steps(index, on, stage.config.batch_size)
        stage.watch.more(stage.config.epochs * steps)
        order = start_drawing(seed, index)
        learn(learner, index, on, stage.config, order=order, watch=stage.watch)

    def trained_with(strength: float, on: TaskSequence) -> None:
        network.load_state_dict(first)
        method.load_state_dict(_copy(kept))
        method.set_strength(strength)
        trained(method, on)

    reached: dict[float, float] = {}  # by strength, the accuracy on validation data

    def outcome(
        strength: float, penalty: float | None = None, *, forgotten: float | None = None
    ) -> Trial:
        accuracies = []
        for examples in judged:
            (own,), labels = stage.outputs(network, [head], examples)
            right = (own.argmax(1) == labels).double().mean()
            reached.setdefault(strength, float(right))
            accuracies.append(expected_accuracy(own, labels))
        lost = foresight.forgotten(network) if forgotten is None else forgotten
        return Trial(accuracies, lost, penalty)

    def trial(strength: float) -> Trial:
        try:
            trained_with(strength, part)
        except NonFiniteError:  # steps too large for it
            reached[strength] = 0.0
            return Trial([0.0] * len(judged), 1.0)
        if method.merges:  # what counts is what the merge leaves
            method.end(index, part)
        return outcome(strength)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*nothing protect")  # which is what is meant here
        trained(FineTune(network, FineTuneOptions(), method.setting), part)
        resistance = method.resistance(first)
    choice = choose_strength(
        trial,
        start=START if resistance is None else None,
        # Without its merge such a method would drop what it keeps: all the old tasks.
        reference=outcome(0.0, resistance, forgotten=1.0 if method.merges else None),
        decay=DECAY,
        old_tasks=index,
    )
    network.load_state_dict(first)
    method.load_state_dict(_copy(kept))
    now = choice.strength
    if not choice.accepted and earlier and choice.tried:
        now = choice.tried[-1].strength  # with which about as much is forgotten as with none
    strength = 0.0
    if now:
        # λ_t = a_t (Π λ_i / a_i)^(1/t), with a_i the first that was tried on task i
        first_tried = choice.tried[0].strength
        strength = first_tried * math.exp(fmean(map(math.log, [*earlier, now / first_tried])))
    method.set_strength(strength)
    trained(method, whole)
    return strength, _noted(task.name, choice, now, reached)


def _noted(
    task: str, choice: StrengthChoice, now: float, reached: Mapping[float, float]
) -> list[TriedStrength]:
    """What was tried, with accuracies as they are counted; with λ = 0 where nothing is held."""
    reference = reached[0.0]
    found: list[TriedStrength] = [
        {
            "task": task,
            "strength": one.strength,
            "accuracy": reached[one.strength],
            "accepted": one.strength == now,
            "forgotten": one.forgotten,
            "reference": reference,
        }
        for one in choice.tried
    ]
    if not now:
        last: TriedStrength = {"strength": 0.0, "accuracy": reference, "accepted": True}
        found.append({"task": task, "reference": reference, **last})
    return found


def parts_chosen(searched: Sequence[TriedStrength]) -> list[float]:
    """Of every task with a choice, the λ that was chosen as a part of the first that was tried."""
    first: dict[str, float] = {}
    chosen = []
    for one in searched:
        strength = one["strength"] or 0.0
        first.setdefault(one["task"], strength)
        if one["accepted"] and strength:
            chosen.append(strength / first[one["task"]])
    return chosen


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}
