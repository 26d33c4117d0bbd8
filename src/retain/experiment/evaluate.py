"""Outputs and accuracy, in large batches, read from the device once; and Ω in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retain.experiment.machine import Autocast
from retain.experiment.record import QUANTILES, LayerImportance
from retain.models import TaskNetwork
from retain.tasks import Examples

BATCH = 1000
# Numbers in an input; of larger ones, and of tokens, each of which becomes a vector, a batch holds
# fewer.
LARGE_INPUT = 64 * 64
LARGE_BATCH = 200


def pass_size(input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    """Samples per batch where nothing is trained and nothing differentiated."""
    return LARGE_BATCH if _is_large(input_shape, dtype) else BATCH


def importance_size(
    input_shape: tuple[int, ...], batch_size: int, dtype: torch.dtype = torch.float32
) -> int:
    """Samples per batch where importance is computed, with the memory of a training step.

    Of large inputs as many as are trained on at once, which are known to fit.
    """
    return min(batch_size, LARGE_BATCH) if _is_large(input_shape, dtype) else BATCH


def _is_large(input_shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point or math.prod(input_shape) > LARGE_INPUT


@dataclass(frozen=True)
class ClassScores:
    """How many examples of each class there are, and how many of them the network gets right."""

    right: Sequence[int]
    of: Sequence[int]

    @property
    def accuracy(self) -> float:
        """The part of all examples, in [0, 1]."""
        return sum(self.right) / sum(self.of)

    def by_class(self, names: Sequence[str]) -> dict[str, float | None]:
        """The part of each class, to five digits; None for a class without examples."""
        return {
            name: round(right / of, 5) if of else None
            for name, right, of in zip(names, self.right, self.of)
        }


@torch.no_grad()
def score(
    network: TaskNetwork,
    task: int,
    examples: Examples,
    *,
    classes: int,
    size: int,
    precision: Autocast,
) -> ClassScores:
    """What the network gets right of `examples`, of so many classes, with the head of `task`."""
    before = network.task, network.training
    network.eval()
    network.task = task
    right = torch.zeros(classes, dtype=torch.int64, device=precision.device)
    with precision.lowered():
        for batch in examples.batches(size, device=precision.device):
            correct = network(batch.inputs).argmax(1) == batch.labels
            right.index_add_(0, batch.labels, correct.long())
    network.task = before[0]
    network.train(before[1])
    return ClassScores(right.tolist(), examples.labels.bincount(minlength=classes).tolist())


@torch.no_grad()
def outputs(
    network: TaskNetwork,
    heads: Iterable[int],
    examples: Examples,
    *,
    size: int,
    precision: Autocast,
) -> tuple[list[Tensor], Tensor]:
    """Of each of these heads the outputs [n, classes] for `examples`; and their labels [n]."""
    asked, training = list(heads), network.training
    network.eval()
    found: list[list[Tensor]] = [[] for _ in asked]
    labels = []
    with precision.lowered():
        for batch in examples.batches(size, device=precision.device):
            features = network.features(batch.inputs)
            labels.append(batch.labels)
            for own, number in zip(found, asked):
                own.append(network.heads[number](features).float())
    network.train(training)
    return [torch.cat(own) for own in found], torch.cat(labels)


def by_layer(importance: Mapping[str, Tensor] | None) -> dict[str, LayerImportance] | None:
    """For each parameter the mean of Ω, its share of the total, and `QUANTILES` of its elements."""
    if importance is None:
        return None
    arrays = {name: omega.detach().float().cpu().numpy() for name, omega in importance.items()}
    sums = {name: float(array.sum(dtype=np.float64)) for name, array in arrays.items()}
    total = sum(sums.values())
    return {
        name: {
            "mean": sums[name] / array.size,
            "share": sums[name] / total if total else 0.0,
            "quantiles": [float(q) for q in np.quantile(array, QUANTILES)],
        }
        for name, array in arrays.items()
    }
