"""What the network answered before it began to learn a task, for the batches of that task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor

from retain.methods.method import Setting
from retain.models import TaskNetwork
from retain.tasks import Examples, Minibatch

Answer = Callable[[TaskNetwork, Tensor], Tensor]


class OldAnswers:
    """`answer(old network, inputs)`: recorded where inputs repeat, else asked of a frozen copy.

    Attributes:
        recorded: [samples, answers], when the training transform gives the same inputs each epoch.
        teacher: a frozen copy of the network, when it does not.
    """

    def __init__(
        self, network: TaskNetwork, examples: Examples, answer: Answer, setting: Setting
    ) -> None:
        self.answer = answer
        self.recorded: Tensor | None = None
        self.teacher: TaskNetwork | None = None
        if examples.deterministic:
            self.recorded = _record(network, examples, answer, setting)
        else:
            self.teacher = deepcopy(network).eval().requires_grad_(False)

    def __call__(self, batch: Minibatch) -> Tensor:
        """[n, answers] for the samples of `batch`, without gradient."""
        if self.recorded is not None:
            return self.recorded[batch.indices]
        assert self.teacher is not None
        with torch.no_grad():
            return self.answer(self.teacher, batch.inputs)

    def kept(self) -> Iterable[Tensor]:
        """The tensors that are held: the record, or the teacher's."""
        if self.teacher is None:
            return [] if self.recorded is None else [self.recorded]
        return [*self.teacher.parameters(), *self.teacher.buffers()]


def _record(network: TaskNetwork, examples: Examples, answer: Answer, setting: Setting) -> Tensor:
    training = network.training
    network.eval()
    record: Tensor | None = None
    with torch.no_grad():
        for batch in examples.batches(setting.pass_size, train=True, device=setting.device):
            answers = answer(network, batch.inputs)
            if record is None:
                record = answers.new_empty(len(examples), answers.shape[1])
            record[batch.indices] = answers
    network.train(training)
    assert record is not None
    return record
