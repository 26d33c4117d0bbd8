"""Real handwritten digits that come with scikit-learn: 1,797 of them, 8×8 pixels."""

from __future__ import annotations

import torch

from retain.errors import ConfigError
from retain.extras import needs
from retain.tasks.options import TaskOptions
from retain.tasks.splits import held_out
from retain.tasks.task import Task
from retain.tasks.whole import WholeSet, some_examples, tasks_by_classes

TEST_FRACTION = 0.3
PERMUTATIONS = 5
SIDE = 8


def digits(options: TaskOptions) -> tuple[Task, ...]:
    """The digits, two per task in order: 0-1, 2-3, 4-5, 6-7, 8-9."""
    return tasks_by_classes(whole_digits(options.seed), options)


def permuted_digits(count: int, options: TaskOptions) -> tuple[Task, ...]:
    """`count` tasks of all ten digits: the first as they are, then pixels in fixed random orders.

    Raises:
        ConfigError: fewer than one task, or a choice of classes, which all these tasks share.
    """
    if count < 1:
        raise ConfigError(f"permuted-digits={count}: expected one task or more.")
    for option in ("classes_per_task", "class_order_seed"):
        if getattr(options, option) is not None:
            raise ConfigError(
                f"{option} was given, but every task of permuted-digits has all ten classes in "
                "their order. Leave it out, or use digits."
            )
    data = whole_digits(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    tasks = []
    for number in range(count):
        order = torch.randperm(SIDE * SIDE, generator=generator)
        order = order if number else torch.arange(SIDE * SIDE)
        train, test = (
            some_examples(inputs.flatten(1)[:, order].view_as(inputs), labels, options)
            for inputs, labels in (data.train, data.test)
        )
        name = f"permutation {number}" if number else "as written"
        task = Task(name, data.classes, train, test)
        tasks.append(task.with_validation(options.val_fraction, seed=options.seed))
    return tuple(tasks)


def whole_digits(seed: int) -> WholeSet:
    """All the digits, [n, 1, 8, 8] in [0, 1]; three in ten of each class, seeded, are the test."""
    loaded = needs("sklearn.datasets").load_digits()
    inputs = torch.from_numpy(loaded.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(loaded.target).long()
    train, test = held_out(labels, TEST_FRACTION, seed=seed)
    classes = tuple(str(digit) for digit in range(10))
    return WholeSet(classes, (inputs[train], labels[train]), (inputs[test], labels[test]))
