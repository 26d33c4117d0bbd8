"""How much of the old tasks is expected to be lost, while their data is not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

import retain
from retain.drift import Drift
from retain.experiment.stage import Stage
from retain.methods import Method
from retain.methods.method import allocated, under
from retain.models import TaskNetwork
from retain.strength import Trial, margins

KEPT = 101  # quantiles, one for each percent
# Of the old answers that would change if old outputs moved as those of new inputs do, the part that
# is expected to. Over eight strengths split digits lose 0.5 of them and Fashion-MNIST 0.7 to 1.1;
# with six, questions to a network that comes pre-trained 0.1.
MOVED = 0.5


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
    """Half of the old answers that would change, if old outputs moved as those of new inputs do.

    What an old head says of the new task's inputs may be looked at: before, and when the task has
    been learned. By how much the margin of the class that was named falls there, the margins that
    the head had on its own task fall as well, one on one as likely as another. On inputs that a
    head has learned its margins are larger, so that far fewer answers change; and they move less,
    since nothing is trained there. Of each old task `KEPT` numbers are kept: the quantiles of its
    margins.
    """

    def __init__(self) -> None:
        self.margins: list[Tensor] = []
        self._asked: tuple[Stage, int] | None = None
        self._before: list[tuple[Tensor, Tensor]] = []  # of each head what it named, and its margin

    def begin(self, network: TaskNetwork, index: int, stage: Stage) -> None:
        """Ask the old heads about the training data of the new task."""
        self._asked = stage, index
        self._before = []
        for outputs in self._answers(network):
            named = outputs.argmax(1)
            self._before.append((named, margins(outputs, named)))

    def forgotten(self, network: TaskNetwork) -> float:
        """`MOVED` times the mean over old heads of `lost`."""
        shares = []
        now = self._answers(network)
        for known, (named, before), after in zip(self.margins, self._before, now):
            shares.append(lost(known, margins(after, named) - before))
        return MOVED * sum(shares) / len(shares)

    def _answers(self, network: TaskNetwork) -> list[Tensor]:
        assert self._asked is not None
        stage, index = self._asked
        return stage.outputs(network, range(index), stage.sequence.tasks[index].train)[0]

    def end(self, method: Method[Any], index: int, stage: Stage) -> None:
        """Note the margins of the task's head on what it gets right of its own training data."""
        (own,), labels = stage.outputs(method.network, [index], stage.sequence.tasks[index].train)
        found = margins(own, labels)
        right = found[found > 0]
        self.margins.append(quantiles(right).cpu())

    def kept(self) -> int:
        """`KEPT` numbers a task."""
        return allocated(self.state_dict().values())

    def state_dict(self) -> dict[str, Tensor]:
        """The margins."""
        return {"margins": torch.stack(self.margins)} if self.margins else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the margins back."""
        self.margins = list(state["margins"].unbind()) if "margins" in state else []


def quantiles(values: Tensor) -> Tensor:
    """`KEPT` of them, from the least to the largest; ∞ where there is no value."""
    if not len(values):
        return torch.full((KEPT,), torch.inf)
    places = torch.linspace(0, len(values) - 1, KEPT).round().long()
    return values.sort().values[places.to(values.device)]


def lost(known: Tensor, moved: Tensor) -> float:
    """The share of old answers that would change: P(m + d < 0), with m and d independent.

    Args:
        known: m [k], margins on old inputs, in order.
        moved: d [n], what was added to margins on new inputs.
    """
    d = moved.nan_to_num(nan=-torch.inf).to(known)
    below = torch.searchsorted(known, -d)  # of the known margins those with m < −d
    return float(below.double().mean() / len(known))


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
