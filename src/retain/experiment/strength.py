"""λ chosen on the new task alone: the highest with which it can still be learned well."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from retain.experiment.seeding import start_drawing
from retain.experiment.stage import Stage
from retain.experiment.training import learn
from retain.methods import METHODS, Method
from retain.methods.finetune import FineTune, FineTuneOptions
from retain.strength import choose_strength

# Times the method's default: high enough to hold the old tasks (the survey starts MAS at 3, LwF at
# 10). Far beyond it LwF and EBLL take steps so large that they harm what they should keep.
START = 10.0


def choose(method: Method[Any], index: int, stage: Stage, seed: int) -> list[dict[str, Any]]:
    """What was tried; leaves `method` trained on task `index` with the strength that was chosen.

    Fine-tuning on the new task is the reference. The first search starts high; later ones start
    from the strength that the last one ended with. No data of an old task is looked at.
    """
    network, task = method.network, stage.sequence.tasks[index]
    first, kept = _copy(network.state_dict()), _copy(method.state_dict())

    def trained(learner: Method[Any]) -> float:
        steps = learner.steps(index, stage.sequence, stage.config.batch_size)
        stage.watch.more(stage.config.epochs * steps)
        order = start_drawing(seed, index)
        learn(learner, index, stage.sequence, stage.config, order=order, watch=stage.watch)
        return stage.score(network, index, task.val).accuracy

    def trained_with(strength: float) -> float:
        network.load_state_dict(first)
        method.load_state_dict(_copy(kept))
        method.set_strength(strength)
        return trained(method)

    reference = trained(FineTune(network, FineTuneOptions(), method.setting))
    default = METHODS[method.name].Options().strength
    start = START * default if index == 1 else method.options.strength
    choice = choose_strength(trained_with, start=start, reference=reference)
    return [
        {
            "task": task.name,
            "strength": one.strength,
            "accuracy": one.accuracy,
            "accepted": one.accepted,
            "reference": reference,
        }
        for one in choice.tried
    ]


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}
