"""λ chosen on a new task, without old data: what is tried, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from retain.experiment.machine import start_drawing
from retain.experiment.results import Tried
from retain.experiment.stage import Stage
from retain.experiment.train import learn
from retain.methods import METHODS, Method
from retain.methods.finetune import FineTune, FineTuneOptions
from retain.strength import choose_strength
from retain.tasks import TaskSequence

# Times the method's default: high enough to hold the old tasks (the survey starts MAS at 3, LwF at
# 10). Far beyond it LwF and EBLL take steps so large that they harm what they should keep.
START = 10.0
DECAY = 0.3
VALIDATION = 0.1  # of a task's training data, where it has no validation data of its own
ENOUGH = 500  # validation samples, of which one standard error is about a point or less


def choose(method: Method[Any], index: int, stage: Stage, seed: int) -> list[Tried]:
    """What was tried; leaves `method` trained on task `index` with the strength that was chosen.

    Fine-tuning on the new task is the reference. The first search starts high; later ones start
    one step above the strength that the last one ended with. Where no strength lets the new task
    be learned, nothing is held. No data of an old task is looked at. Where validation data
    is too little to tell a point, accuracy on the task's training data must not be lost either.
    Validation data is the task's own, or cut from its training data: then it is learned once more
    from all of them, with the strength that was chosen.
    """
    network, whole = method.network, stage.sequence
    task = whole.tasks[index].with_validation(VALIDATION)
    assert task.val is not None
    judged = [task.val] if len(task.val) >= ENOUGH else [task.val, task.train]
    first, kept = _copy(network.state_dict()), _copy(method.state_dict())

    part = replace(whole, tasks=(*whole.tasks[:index], task, *whole.tasks[index + 1 :]))

    def trained(learner: Method[Any], on: TaskSequence = part) -> list[float]:
        steps = learner.steps(index, on, stage.config.batch_size)
        stage.watch.more(stage.config.epochs * steps)
        order = start_drawing(seed, index)
        learn(learner, index, on, stage.config, order=order, watch=stage.watch)
        return [stage.score(network, index, examples).accuracy for examples in judged]

    def trained_with(strength: float, on: TaskSequence = part) -> list[float]:
        network.load_state_dict(first)
        method.load_state_dict(_copy(kept))
        method.set_strength(strength)
        return trained(method, on)

    reference = trained(FineTune(network, FineTuneOptions(), method.setting))
    default = METHODS[method.name].Options().strength
    # later on one step above the last one, for it may have been noise that it was not higher
    start = START * default if index == 1 else min(method.options.strength / DECAY, START * default)
    choice = choose_strength(
        trained_with,
        start=start or START * default,
        reference=reference,
        samples=[len(examples) for examples in judged],
        decay=DECAY,
    )
    if not choice.accepted or task is not whole.tasks[index]:
        trained_with(choice.strength, whole)
    found: list[Tried] = [
        {
            "task": task.name,
            "strength": one.strength,
            "accuracy": one.accuracy,
            "accepted": one.accepted,
            "reference": choice.reference,
        }
        for one in choice.tried
    ]
    if not choice.accepted:  # as if nothing was held
        last: Tried = {"strength": 0.0, "accuracy": choice.reference, "accepted": True}
        found.append({"task": task.name, "reference": choice.reference, **last})
    return found


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}
