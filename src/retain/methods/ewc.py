"""EWC and online EWC (Kirkpatrick et al. 2017; Schwarz et al. 2018): held by the Fisher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import retain
from retain.memory.body import Memory
from retain.methods.quadratic import Quadratic, QuadraticOptions
from retain.ranges import NotNegative, Share
from retain.tasks import TaskSequence

FisherKind = Literal["sampled", "exact", "empirical"]


@dataclass(frozen=True)
class EWCOptions(QuadraticOptions):
    """Defaults of EWC.

    Attributes:
        fisher: labels sampled from the network, all classes weighted by their probability
            ("exact"), or the data's own labels ("empirical").
    """

    strength: NotNegative = 1e5
    fisher: FisherKind = "sampled"


@dataclass(frozen=True)
class OnlineEWCOptions(EWCOptions):
    """Defaults of online EWC.

    Attributes:
        decay: γ, how much of the old Fisher stays: F ← γF + F_new.
    """

    decay: Share = 0.95


class EWCMethod(Quadratic[EWCOptions]):
    """λ/2 Σ_t Σ F_t (θ − θ*_t)², with F_t the diagonal Fisher of task t and θ*_t its weights."""

    name = "ewc"
    title = "EWC"
    Options = EWCOptions
    stores = "One Fisher F and one anchor θ* per shared weight and task."
    needs = "unlabelled old data, once"
    knob = "strength"

    def make_memory(self) -> Memory:
        """`retain.EWC`, with a term per task."""
        return retain.EWC(
            self.network,
            fisher=self.options.fisher,
            seed=self.setting.seed,
            include=self.setting.shared,
        )


class OnlineEWCMethod(Quadratic[OnlineEWCOptions]):
    """λ/2 Σ F (θ − θ*)², with one Fisher that fades, F ← γF + F_new, and the latest weights θ*."""

    name = "online-ewc"
    title = "Online EWC"
    Options = OnlineEWCOptions
    stores = "One Fisher F and one anchor θ* per shared weight, however many tasks there were."
    needs = "unlabelled old data, once"
    knob = "strength"

    def make_memory(self) -> Memory:
        """`retain.EWC` with one term."""
        return retain.EWC(
            self.network,
            fisher=self.options.fisher,
            online=True,
            seed=self.setting.seed,
            include=self.setting.shared,
        )

    def end(self, index: int, sequence: TaskSequence) -> None:
        """Observe the task's data, and consolidate with the decay."""
        self.memory.observe(self.passes(index, sequence), progress=False)
        self.memory.consolidate(self.options.decay)
