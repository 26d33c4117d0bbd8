"""How much of the old tasks is expected to be lost, while their data is not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

import retain
from retain.drift import Drift
from retain.experiment.machine import Autocast
from retain.experiment.stage import Stage
from retain.methods import Method
from retain.methods.method import allocated, under
from retain.models import TaskNetwork
from retain.strength import Trial

# Of what the old heads say about new inputs, the part that counts as lost where they say something
# else than before, as a rule of thumb: they change most on what is being learned.
LOST_PER_CHANGE = 0.1


class Foresight(Protocol):
    """What is known of old tasks when a new one begins."""

    def begin(self, network: TaskNetwork, index: int, stage: Stage) -> None:
        """Note what is to be compared with, before task `index` is learned."""

    def forgotten(self, network: TaskNetwork) -> float:
        """The share of what the old tasks are able to do that is expected to be lost."""

    def end(self, method: Method[Any], index: int, stage: Stage) -> None:
        """Note what later tasks shall know of task `index`, as long as its data is there."""

    def kept(self) -> int:
        """Bytes that are kept between tasks."""

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept between tasks."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""


def foresight(stage: Stage) -> Foresight:
    """Old heads where there are some; else Ω, since the one head is to answer otherwise."""
    if stage.sequence.scenario == "domain-incremental":
        return Drifting()
    return OldHeads()


class OldHeads:
    """How often the old heads answer otherwise than before about the new task's own inputs.

    Agreement is counted beyond chance. Nothing is kept between tasks.
    """

    def __init__(self) -> None:
        self._asked: tuple[Stage, int] | None = None
        self._before: list[Tensor] = []

    def begin(self, network: TaskNetwork, index: int, stage: Stage) -> None:
        """Ask the old heads about the training data of the new task."""
        self._asked = stage, index
        self._before = self._answers(network)

    def forgotten(self, network: TaskNetwork) -> float:
        """A tenth of the mean over old heads of (part of answers that changed) / (1 − 1/C)."""
        shares = []
        for head, before, now in zip(network.heads, self._before, self._answers(network)):
            classes = int(head.weight.shape[0])  # type: ignore[index]
            changed = float((before != now).float().mean())
            shares.append(min(1.0, changed / (1 - 1 / classes)))
        return LOST_PER_CHANGE * sum(shares) / len(shares)

    @torch.no_grad()
    def _answers(self, network: TaskNetwork) -> list[Tensor]:
        """[n] of every old head: the class that it names."""
        assert self._asked is not None
        stage, index = self._asked
        examples, setting = stage.sequence.tasks[index].train, stage.setting(0, None)
        training = network.training
        network.eval()
        found: list[list[Tensor]] = [[] for _ in range(index)]
        with Autocast(stage.config.amp, stage.device).lowered():
            for batch in examples.batches(setting.pass_size, device=stage.device):
                features = network.features(batch.inputs)
                for answers, head in zip(found, network.heads):
                    answers.append(head(features).argmax(1))
        network.train(training)
        return [torch.cat(answers) for answers in found]

    def end(self, method: Method[Any], index: int, stage: Stage) -> None:
        """Nothing."""

    def kept(self) -> int:
        """Nothing."""
        return 0

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""


class Drifting:
    """The drift by an Ω of its own, that of MAS whatever the method; it observes each task's end.

    Where all tasks share a head, what it says of new inputs has to change, and tells nothing of the
    old ones.
    """

    def __init__(self) -> None:
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def begin(self, network: TaskNetwork, index: int, stage: Stage) -> None:
        """θ* is already what there was at the end of the last task."""

    def forgotten(self, network: TaskNetwork) -> float:
        """As `retain.strength.Trial` has it."""
        weights = {name: p.detach() for name, p in network.named_parameters()}
        return Trial.of(0.0, Drift.of(self.importance, self.anchor, weights)).forgotten

    def end(self, method: Method[Any], index: int, stage: Stage) -> None:
        """Observe the task's data, without labels: Ω grows, θ* is where the weights are now."""
        memory = retain.MAS(method.network, include=method.setting.shared)
        memory.observe(method.passes(index, stage.sequence), progress=False)
        for name, omega in memory.observed.items():
            self.importance[name] = self.importance[name] + omega if index else omega.clone()
        weights = method.network.named_parameters()
        self.anchor = {n: p.detach().clone() for n, p in weights if n in self.importance}

    def kept(self) -> int:
        """Ω and θ*."""
        return allocated(self.state_dict().values())

    def state_dict(self) -> dict[str, Tensor]:
        """Ω and θ*."""
        parts = {"importance": self.importance, "anchor": self.anchor}
        return {
            f"{part}.{name}": t for part, several in parts.items() for name, t in several.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take Ω and θ* back."""
        self.importance, self.anchor = under(state, "importance."), under(state, "anchor.")
