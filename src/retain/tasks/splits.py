"""Indices of splits: a part held out, a few per class, classes dealt out to tasks. All seeded."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.errors import ConfigError

# The seed that the survey's public code halves the official test sets with.
SURVEY_SEED = 123


def halves(labels: Tensor, *, seed: int = SURVEY_SEED) -> tuple[Tensor, Tensor]:
    """Sorted indices of two halves, each with every other example of each class.

    The first half is the smaller one where the number is odd.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    return by_class[1::2].sort().values, by_class[::2].sort().values


def held_out(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices (kept, held out): `fraction` of each class, rounded, is held out.

    Every class gives at least one example, as long as it keeps one.

    Raises:
        ConfigError: `fraction` does not lie between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"The part to hold out is {fraction:g}; expected between 0 and 1.")
    generator = torch.Generator().manual_seed(seed)
    kept, out = [], []
    for members in _by_class(labels):
        shuffled = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        out.append(shuffled[:count])
        kept.append(shuffled[count:])
    return _sorted(kept), _sorted(out)


def few_per_class(labels: Tensor, count: int | None, *, seed: int) -> Tensor:
    """Sorted indices of at most `count` examples of each class; of all of them if it is None."""
    if count is None:
        return torch.arange(len(labels))
    generator = torch.Generator().manual_seed(seed)
    chosen = [
        members[torch.randperm(len(members), generator=generator)[:count]]
        for members in _by_class(labels)
    ]
    return _sorted(chosen)


def dealt(classes: int, per_task: int, *, order_seed: int | None = None) -> list[list[int]]:
    """Class numbers of each task: `per_task` at a time, the last task takes what remains.

    Args:
        classes: how many there are.
        per_task: how many a task gets.
        order_seed: shuffle the classes first; None keeps their order.

    Raises:
        ConfigError: some task would have fewer than two classes, or there are not as many.
    """
    if per_task > classes:
        raise ConfigError(
            f"classes_per_task is {per_task}, but there are {classes} classes. Give at most that "
            "many."
        )
    if per_task < 2 or classes < 2 or classes % per_task == 1:
        raise ConfigError(
            f"{classes} classes, {per_task} per task: some task would have fewer than two classes, "
            "so there would be nothing to tell apart. Choose another classes_per_task."
        )
    order = torch.arange(classes)
    if order_seed is not None:
        order = torch.randperm(classes, generator=torch.Generator().manual_seed(order_seed))
    return [part.tolist() for part in order.split(per_task)]


def of_classes(labels: Tensor, classes: list[int]) -> tuple[Tensor, Tensor]:
    """(indices, new labels) of the examples of `classes`; a label is its place in that list."""
    place = torch.full((max(int(labels.max()), *classes) + 1,), -1)
    place[torch.tensor(classes)] = torch.arange(len(classes))
    renamed = place[labels]
    indices = (renamed >= 0).nonzero().flatten()
    return indices, renamed[indices]


def _by_class(labels: Tensor) -> list[Tensor]:
    return [(labels == label).nonzero().flatten() for label in labels.unique()]


def _sorted(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).sort().values if parts else torch.empty(0, dtype=torch.int64)
