"""How much of the old tasks is expected to be lost, while their data is not looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

    Agreement is counted beyond chance. On inputs that a head has learned it is surer than on new
    ones, and changes its mind less easily: its mean margin on either, the difference of its two
    largest outputs, says how much less. One number is kept for each old task.
    """

    def __init__(self) -> None:
        self.margins: list[float] = []
        self._asked: tuple[Stage, int] | None = None
        self._before: list[tuple[Tensor, float]] = []

    def begin(self, network: TaskNetwork, index: int, stage: Stage) -> None:
        """Ask the old heads about the training data of the new task."""
        self._asked = stage, index
        self._before = answers(network, index, range(index), stage)

    def forgotten(self, network: TaskNetwork) -> float:
        """Mean over old heads of erfc(k · erfc⁻¹(x)), see `lost`."""
        assert self._asked is not None
        stage, index = self._asked
        shares = []
        now = answers(network, index, range(index), stage)
        for head, known, (before, margin), (after, _) in zip(
            network.heads, self.margins, self._before, now
        ):
            classes = int(head.weight.shape[0])  # type: ignore[index]
            changed = float((before != after).float().mean()) / (1 - 1 / classes)
            shares.append(lost(changed, known / margin if margin else 1.0))
        return sum(shares) / len(shares)

    def end(self, method: Method[Any], index: int, stage: Stage) -> None:
        """Note the margin of the task's head on its own data."""
        ((_, margin),) = answers(method.network, index, [index], stage)
        self.margins.append(margin)

    def kept(self) -> int:
        """One number a task."""
        return allocated(self.state_dict().values())

    def state_dict(self) -> dict[str, Tensor]:
        """The margins."""
        return {"margins": torch.tensor(self.margins)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the margins back."""
        self.margins = state["margins"].tolist()


def lost(changed: float, surer: float) -> float:
    """The share of old answers that is expected to be lost.

    As if every output had moved by a normal deviation σ: x = erfc(m / √2σ) of the answers change
    where margins are m, and erfc(k m / √2σ) where they are k times as large.

    Args:
        changed: x, the share of answers about new inputs that changed, beyond chance.
        surer: k, the margin on old inputs over that on new ones.
    """
    x = torch.tensor(min(1.0, changed), dtype=torch.float64)
    # erfc⁻¹(x) = erf⁻¹(1 − x)
    return float(torch.special.erfc(max(1.0, surer) * torch.special.erfinv(1 - x)))


@torch.no_grad()
def answers(
    network: TaskNetwork, index: int, heads: Iterable[int], stage: Stage
) -> list[tuple[Tensor, float]]:
    """Of each head the classes [n] that it names for task `index`, and its mean margin there."""
    examples, setting = stage.sequence.tasks[index].train, stage.setting(0, None)
    asked = list(heads)
    training = network.training
    network.eval()
    found: list[list[Tensor]] = [[] for _ in asked]
    with Autocast(stage.config.amp, stage.device).lowered():
        for batch in examples.batches(setting.pass_size, device=stage.device):
            features = network.features(batch.inputs)
            for outputs, number in zip(found, asked):
                outputs.append(network.heads[number](features).float())
    network.train(training)
    whole = [torch.cat(outputs) for outputs in found]
    largest = [outputs.topk(2, 1).values for outputs in whole]
    return [
        (outputs.argmax(1), float((top[:, 0] - top[:, 1]).mean()))
        for outputs, top in zip(whole, largest)
    ]


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
