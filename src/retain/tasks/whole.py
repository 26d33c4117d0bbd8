"""From one data set in memory to tasks: classes dealt out, a few per class, validation split."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from retain.tasks.options import TaskOptions
from retain.tasks.splits import dealt, few_per_class, of_classes
from retain.tasks.task import Task
from retain.tasks.tensors import TensorExamples

CLASSES_PER_TASK = 2


@dataclass(frozen=True)
class WholeSet:
    """A data set in memory: inputs [n, c, h, w] in [0, 1] and labels [n] of train and test."""

    classes: tuple[str, ...]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def tasks_by_classes(data: WholeSet, options: TaskOptions) -> tuple[Task, ...]:
    """One task for each group of classes, named after them."""
    per_task = options.classes_per_task or CLASSES_PER_TASK
    groups = dealt(len(data.classes), per_task, order_seed=options.class_order_seed)
    return tuple(_one_task(data, group, options) for group in groups)


def some_examples(inputs: Tensor, labels: Tensor, options: TaskOptions) -> TensorExamples:
    """A split with at most `samples_per_class` examples of each class."""
    few = few_per_class(labels, options.samples_per_class, seed=options.seed)
    return TensorExamples(inputs[few], labels[few])


def _one_task(data: WholeSet, group: list[int], options: TaskOptions) -> Task:
    names = tuple(data.classes[number] for number in group)
    splits = []
    for inputs, labels in (data.train, data.test):
        indices, renamed = of_classes(labels, group)
        splits.append(some_examples(inputs[indices], renamed, options))
    train, test = splits
    task = Task("-".join(names), names, train, test)
    return task.with_validation(options.val_fraction, seed=options.seed)
