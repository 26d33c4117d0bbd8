"""The weights that a task starts from, kept while it is learned."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from retain.methods.method import Method, OptionsT, Setting
from retain.models import TaskNetwork
from retain.parameters import Selection
from retain.tasks import TaskSequence


class FromStart(Method[OptionsT]):
    """A method that remembers the shared weights as they were before the task at hand.

    Attributes:
        start: name -> weight or running statistic before the task; empty while the first task is
            learned, which starts from nothing worth keeping.
    """

    holds_weights = True

    def __init__(self, network: TaskNetwork, options: OptionsT, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self.start: Mapping[str, Tensor] = {}

    def begin(self, index: int, sequence: TaskSequence) -> None:
        """Keep a copy of what the tasks share."""
        self.start = shared_weights(self.network, self.setting) if index > 0 else {}


def shared_weights(network: TaskNetwork, setting: Setting) -> dict[str, Tensor]:
    """A copy of what tasks share: weights, and the running statistics of batch-norm."""
    shared = Selection.of(setting.shared, None)
    return {
        name: tensor.clone()
        for name, tensor in network.state_dict().items()
        if shared.picks(name) and tensor.is_floating_point()
    }
