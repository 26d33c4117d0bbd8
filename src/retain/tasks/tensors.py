"""Examples that are tensors in memory: batched by indexing, never by a loop over examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from retain.errors import ConfigError
from retain.tasks.task import Device, Minibatch


class TensorExamples:
    """Inputs [n, …] and labels [n] in memory; the training transform changes nothing."""

    deterministic = True

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        if len(inputs) != len(labels) or labels.ndim != 1:
            raise ConfigError(
                f"Inputs of shape {tuple(inputs.shape)} with labels of shape "
                f"{tuple(labels.shape)}; expected one label for each input."
            )
        self.inputs = inputs
        self.labels = labels.to(torch.int64)
        self._elsewhere: tuple[Device, Tensor, Tensor] = (None, self.inputs, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        size: int,
        *,
        shuffle: torch.Generator | None = None,
        train: bool = False,
        device: Device = None,
    ) -> Iterator[Minibatch]:
        """One epoch; see `Examples.batches`. In order, a batch is a view of the data."""
        inputs, labels = self._on(device)
        if shuffle is None:
            order = torch.arange(len(self))
            for x, y, indices in zip(inputs.split(size), labels.split(size), order.split(size)):
                yield Minibatch(x, y, indices)
            return
        order = torch.randperm(len(self), generator=shuffle)
        for indices in order.split(size):
            there = indices.to(inputs.device)
            yield Minibatch(inputs.index_select(0, there), labels.index_select(0, there), indices)

    def select(self, indices: Tensor) -> TensorExamples:
        """A copy of the examples at `indices`, in that order."""
        return TensorExamples(self.inputs[indices], self.labels[indices])

    def _on(self, device: Device) -> tuple[Tensor, Tensor]:
        """The data on `device`, kept there for the epochs to come."""
        if device != self._elsewhere[0]:
            self._elsewhere = (device, self.inputs.to(device), self.labels.to(device))
        return self._elsewhere[1:]
