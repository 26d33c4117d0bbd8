"""What MAS, l-MAS, EWC and SI share: a memory of `retain` that holds the shared weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from retain.memory.body import Memory
from retain.memory.state import flattened, grouped
from retain.methods.method import Form, Method, Setting
from retain.models import TaskNetwork
from retain.ranges import NotNegative
from retain.tasks import TaskSequence

PLAIN = "plain"


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

    def resistance(self, start: Mapping[str, Tensor]) -> float | None:
        """Σ Ω (θ − θ*)², or of EWC half of it; None while nothing is held."""
        if not self.memory.tasks:
            return None
        before, self.memory.strength = self.memory.strength, 1.0
        try:
            return float(self.memory.penalty().detach())
        finally:
            self.memory.strength = before

    def importance(self) -> Mapping[str, Tensor]:
        """Ω over all tasks so far."""
        return self.memory.importance

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """Ω and θ*."""
        tensors = self.memory.state_dict()["tensors"]
        return {
            what: [t for kind in tensors if kind.startswith(what) for t in tensors[kind].values()]
            for what in ("importance", "anchor")
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Ω and θ*, and all else that the memory remembers; its plain data as bytes of JSON."""
        plain = self.memory.state_dict()
        tensors = flattened(plain.pop("tensors"))
        return {**tensors, PLAIN: torch.tensor(list(json.dumps(plain).encode()), dtype=torch.uint8)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take Ω and θ* back."""
        plain = json.loads(bytes(state[PLAIN].tolist()))
        tensors = grouped({key: tensor for key, tensor in state.items() if key != PLAIN})
        self.memory.load_state_dict({**plain, "tensors": tensors})
