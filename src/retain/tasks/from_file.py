"""Tasks of a user's own: what a function in a Python file returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from retain.errors import ConfigError
from retain.header import shown
from retain.tasks.code_files import result_from_file
from retain.tasks.options import TaskOptions
from retain.tasks.splits import few_per_class
from retain.tasks.task import Task, TaskSequence

FOR_IMAGES = ("image_size", "augmentation", "classes_per_task", "class_order_seed")
NAMED = 10  # problems that a message lists


def code_tasks(spec: str, options: TaskOptions) -> TaskSequence:
    """The tasks that the function in `path/to/file.py:function` returns, called without arguments.

    It returns a `TaskSequence`, or several `Task`s. `samples_per_class` and `val_fraction` apply.

    Raises:
        ConfigError: the file or the function is not there, or fails, or what it returns are no
            tasks that can be learned; everything that is wrong, at once.
    """
    plain = TaskOptions()
    chosen = [name for name in FOR_IMAGES if getattr(options, name) != getattr(plain, name)]
    if chosen:
        raise ConfigError(
            f"{', '.join(chosen)} cannot be chosen for the tasks of {spec}: it makes them itself. "
            "Leave it out, and let the function do that."
        )
    given = result_from_file(spec, "tasks")
    tasks = given.tasks if isinstance(given, TaskSequence) else given
    several = isinstance(tasks, Sequence) and tasks and all(isinstance(t, Task) for t in tasks)
    if not several:
        raise ConfigError(
            f"{spec} returns {shown(given)}; expected a list of retain.tasks.Task, or a "
            "retain.tasks.TaskSequence."
        )
    problems = list(_problems(tasks))
    if problems:
        more = len(problems) - NAMED
        said = "".join(f"\n  - {one}" for one in problems[:NAMED])
        raise ConfigError(
            f"The tasks of {spec} cannot be learned:{said}"
            + (f"\n  - and {more} more" if more > 0 else "")
        )
    first = _first(tasks[0].train)
    made = tuple(_chosen(task, options) for task in tasks)
    if isinstance(given, TaskSequence):
        return replace(
            given, tasks=made, input_shape=tuple(first.shape[1:]), input_dtype=first.dtype
        )
    return TaskSequence(spec, made, tuple(first.shape[1:]), input_dtype=first.dtype)


def _chosen(task: Task, options: TaskOptions) -> Task:
    """The task with as many examples as asked for, and a validation split if there shall be one."""
    count = options.samples_per_class
    if count is not None:
        few = [
            part.select(few_per_class(part.labels, count, seed=options.seed))
            for part in (task.train, task.test)
        ]
        task = replace(task, train=few[0], test=few[1])
    return task.with_validation(options.val_fraction, seed=options.seed)


def _problems(tasks: Sequence[Task]) -> Iterator[str]:
    names = [task.name for task in tasks]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"several are called {name!r}"
    kinds: dict[str, Any] = {}
    for task in tasks:
        classes = len(task.classes)
        if classes < 2:
            yield f"{task.name!r} has {classes} class(es); a task needs two or more"
        splits = {"train": task.train, "test": task.test, "val": task.val}
        for split, examples in splits.items():
            if examples is None:
                continue
            where = f"the {split} split of {task.name!r}"
            if not len(examples):
                yield f"{where} is empty"
                continue
            least, most = int(examples.labels.min()), int(examples.labels.max())
            if least < 0 or most >= classes:
                yield (
                    f"{where} has labels from {least} to {most}; expected 0 to {classes - 1}, "
                    f"places in the task's {classes} classes"
                )
            if split == "train":
                absent = sorted(set(range(classes)) - set(examples.labels.tolist()))
                if absent:
                    yield f"{where} has no example of {', '.join(task.classes[c] for c in absent)}"
            inputs = _first(examples)
            shape = "×".join(map(str, inputs.shape[1:]))
            kinds.setdefault(f"{shape} {str(inputs.dtype).removeprefix('torch.')}", where)
    if len(kinds) > 1:
        said = "; ".join(f"{where}: {kind}" for kind, where in kinds.items())
        yield f"inputs differ in shape or type ({said}); expected one for all tasks"


def _first(examples: Any) -> Tensor:
    inputs: Tensor = next(iter(examples.batches(1))).inputs
    return inputs
