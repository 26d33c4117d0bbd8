"""A model soup over tasks (Wortsman et al. 2022): the mean of networks of one origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from retain.methods.imm import merged_mean
from retain.methods.method import Method, Setting, numbered
from retain.methods.start import shared_weights
from retain.models import TaskNetwork
from retain.parameters import Weights
from retain.tasks import TaskSequence


@dataclass(frozen=True)
class ModelSoupOptions:
    """A soup has nothing to set."""


class ModelSoup(Method[ModelSoupOptions]):
    """Every task after the first is learned from the first task's weights; measured is the mean.

    Unlike mean-IMM nothing holds the networks together but where they come from.
    """

    name = "model-soup"
    title = "Model soup"
    Options = ModelSoupOptions
    stores = "The shared weights of every task, which are averaged."
    needs = "nothing"
    holds_weights = True

    def __init__(self, network: TaskNetwork, options: ModelSoupOptions, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self.models: list[Weights] = []

    def begin(self, index: int, sequence: TaskSequence) -> None:
        """Go back from the mean to the first task's own weights."""
        if self.models:
            self.network.load_state_dict(dict(self.models[0]), strict=False)

    def end(self, index: int, sequence: TaskSequence) -> None:
        """Keep the task's weights, and put the mean of all into the network."""
        self.models.append(shared_weights(self.network, self.setting))
        mean = merged_mean(self.models, [1.0] * len(self.models))
        self.network.load_state_dict(mean, strict=False)

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """The weights of every task."""
        return {"anchor": [w for weights in self.models for w in weights.values()]}

    def state_dict(self) -> dict[str, Tensor]:
        """Every task's weights under its number."""
        return {
            f"model.{t}.{n}": w for t, model in enumerate(self.models) for n, w in model.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take every task's weights back."""
        on_device = {name: tensor.to(self.setting.device) for name, tensor in state.items()}
        self.models = [*numbered(on_device, "model")]
