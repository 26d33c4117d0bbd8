"""What MAS, l-MAS, EWC and SI share: a memory of `retain` that holds the shared weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from retain.memory.body import Memory
from retain.memory.state import State
from retain.methods.method import Form, Method, Setting
from retain.methods.ranges import NotNegative
from retain.models import TaskNetwork
from retain.tasks import TaskSequence

COUNTS = "counts"


@dataclass(frozen=True)
class QuadraticOptions:
    """What every quadratic penalty can be given.

    Attributes:
        strength: λ.
        form: "gradient" adds the penalty's gradient to every step; "proximal" follows every step
            with the penalty's exact minimiser; "adaptive" does so with the optimizer's own step
            sizes.
    """

    strength: NotNegative = 1.0
    form: Form = "adaptive"


QuadraticT = TypeVar("QuadraticT", bound=QuadraticOptions)


class Quadratic(Method[QuadraticT]):
    """λ Σ Ω (θ − θ*)² on the backbone, and on the head where all tasks share it."""

    holds_weights = True

    def __init__(self, network: TaskNetwork, options: QuadraticT, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self.memory = self.make_memory()
        self.memory.strength = options.strength

    def make_memory(self) -> Memory:
        """The memory, on `self.network`, of the parameters that `self.setting.shared` names."""
        raise NotImplementedError

    def set_strength(self, strength: float) -> None:
        """Go on with another λ."""
        super().set_strength(strength)
        self.memory.strength = strength

    def protecting(self, index: int, optimizer: Optimizer) -> AbstractContextManager[Any]:
        """The memory attached to the optimizer, as soon as there is something to hold."""
        if not self.memory.tasks:
            return nullcontext()
        return self.memory.attach(optimizer, form=self.options.form)

    def end(self, index: int, sequence: TaskSequence) -> None:
        """Observe the task's data, and consolidate: Ω grows, θ* is where the weights are now."""
        self.memory.observe(self.passes(index, sequence), progress=False)
        self.memory.consolidate()

    def importance(self) -> Mapping[str, Tensor]:
        """Ω over all tasks so far."""
        return self.memory.importance

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """Ω and θ*."""
        terms = self.memory._state.terms
        return {
            "importance": [omega for term in terms for omega in term.importance.values()],
            "anchor": [anchor for term in terms for anchor in term.anchor.values()],
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Ω and θ*, and how many samples and tasks they come from."""
        state = self.memory._state
        tensors, _header = state.pack()
        counts = [state.samples, state.tasks, *(term.samples for term in state.terms)]
        return {**tensors, **self.memory._more_tensors(), COUNTS: torch.tensor(counts)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take Ω and θ* back."""
        kinds: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            kinds.setdefault(kind, {})[name] = tensor
        samples, tasks, *term_samples = state[COUNTS].tolist()
        header = {"samples": samples, "tasks": tasks, "term_samples": term_samples}
        empty = {"observed_samples": 0, "observed_routes": {}}
        restored = State.unpack(kinds, {**header, **empty})
        devices = {n: p.device for n, p in self.network.named_parameters()}
        self.memory._state = replace(restored, running=None).placed(devices, None)
        self.memory._take_more(kinds)
