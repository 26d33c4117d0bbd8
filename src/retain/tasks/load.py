"""From a specification such as `digits` or `folders:a=PATH,b=PATH` to a sequence of tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from retain import arguments
from retain.closest import did_you_mean
from retain.errors import ConfigError
from retain.saying import warn
from retain.tasks.code_files import USAGE as CODE_USAGE
from retain.tasks.code_files import is_code
from retain.tasks.digits import PERMUTATIONS, SIDE, TEST_FRACTION, digits, permuted_digits
from retain.tasks.folders import USAGE as FOLDERS_USAGE
from retain.tasks.folders import folder_tasks
from retain.tasks.from_file import code_tasks
from retain.tasks.idx import FASHION_MNIST, MNIST, IdxSet, read_set
from retain.tasks.images import Progress
from retain.tasks.options import TaskOptions, unfit
from retain.tasks.paper.tasks import USAGE as PAPER_USAGE
from retain.tasks.paper.tasks import paper_tasks
from retain.tasks.task import Scenario, TaskSequence
from retain.tasks.whole import tasks_by_classes

TaskLoader = Callable[[str, TaskOptions, Progress | None], TaskSequence]
LONGEST_NUMBER = 5  # digits of a number of tasks


def load_tasks(
    spec: str,
    options: TaskOptions | None = None,
    *,
    progress: Progress | None = None,
    **given: Any,
) -> TaskSequence:
    """The tasks that `spec` names; a warning tells of each of their `notes`.

    Args:
        spec: a name from `TASKS`, with what it needs behind it (see there), or
            `path/to/file.py:function`, a function without arguments that returns tasks.
        options: how they are made; `TaskOptions()` by default.
        progress: called while image files are read, with what is read, how many, and of how many.
        **given: single options by name, which win over `options`.

    Raises:
        ConfigError: an unknown name or option, or one that does not go with these tasks.
        FileError: files that are missing, truncated or not what they should be.
    """
    arguments.text("spec", spec)
    if options is not None:
        arguments.instance("options", options, TaskOptions, "TaskOptions(…)")
    arguments.function("progress", progress)
    options = _chosen(options or TaskOptions(), given)
    if is_code_of_tasks(spec):
        return _in_scenario(replace(code_tasks(spec, options), name=spec), options.scenario)
    name, found, argument = _split(spec)
    if name not in TASKS:
        raise ConfigError(
            f"No tasks are called {name!r}.{did_you_mean(name, TASKS)} "
            f"Known: {', '.join(usage for usage, _ in TASKS.values())}, {CODE_USAGE}."
        )
    usage, loader = TASKS[name]
    if found and not argument:
        raise ConfigError(f"Nothing stands behind {name!r} in {spec!r}; expected {usage}.")
    sequence = loader(argument, options, progress)
    for note in sequence.notes:
        warn(note)
    return _in_scenario(replace(sequence, name=spec), options.scenario)


def is_code_of_tasks(spec: str) -> bool:
    """Whether tasks are named by a file of Python, which is run to make them."""
    return is_code(spec) and _split(spec)[0] not in TASKS


def _split(spec: str) -> tuple[str, str, str]:
    """(name, separator, what stands behind it)."""
    separator = min("=:", key=lambda mark: spec.find(mark) if mark in spec else len(spec))
    return spec.partition(separator)


def _chosen(options: TaskOptions, given: dict[str, Any]) -> TaskOptions:
    known = [field.name for field in fields(TaskOptions)]
    unknown = [name for name in given if name not in known]
    if unknown:
        hints = "".join(did_you_mean(name, known) for name in unknown)
        raise ConfigError(
            f"No option of tasks is called {', '.join(unknown)}.{hints} Known: {', '.join(known)}."
        )
    options = replace(options, **given)
    problems = list(unfit(options))
    if problems:
        raise ConfigError(" ".join(problems))
    return options


def _in_scenario(sequence: TaskSequence, wanted: Scenario | None) -> TaskSequence:
    """The sequence with the scenario that was asked for, if it can be played that way."""
    if wanted is None or wanted == sequence.scenario:
        return sequence
    sizes = sorted({len(task.classes) for task in sequence.tasks})
    if wanted == "domain-incremental" and len(sizes) > 1:
        raise ConfigError(
            f"domain-incremental means one head for all tasks, but the tasks of {sequence.name!r} "
            f"have different numbers of classes: {', '.join(map(str, sizes))}."
        )
    return replace(sequence, scenario=wanted)


def _no_images(name: str, side: int, options: TaskOptions) -> None:
    if options.image_size is not None:
        raise ConfigError(
            f"image_size={options.image_size} was given, but the images of {name} are used as "
            f"they are ({side}×{side}); a model that needs larger ones enlarges them itself. "
            "Leave image_size out."
        )
    if options.augmentation != "none":
        raise ConfigError(
            f"augmentation={options.augmentation!r} was given, but the images of {name} are used "
            "as they are; it is for tasks of image files (folders, paper). Leave augmentation out."
        )


def _digits(argument: str, options: TaskOptions, _: Progress | None) -> TaskSequence:
    if argument:
        raise ConfigError(f"digits={argument}: digits come with scikit-learn and need no path.")
    _no_images("digits", SIDE, options)
    shape = (1, SIDE, SIDE)
    return TaskSequence("digits", digits(options), shape, splits=_digit_splits(options))


def _permuted_digits(argument: str, options: TaskOptions, _: Progress | None) -> TaskSequence:
    if argument and not (argument.isdecimal() and len(argument) < LONGEST_NUMBER):
        raise ConfigError(
            f"permuted-digits={argument[:20]}: expected the number of tasks, such as 10; each "
            f"takes 0.5 MB."
        )
    _no_images("permuted-digits", SIDE, options)
    tasks = permuted_digits(int(argument or PERMUTATIONS), options)
    shape, splits = (1, SIDE, SIDE), _digit_splits(options)
    return TaskSequence("permuted-digits", tasks, shape, "domain-incremental", splits=splits)


def _digit_splits(options: TaskOptions) -> str:
    return f"{TEST_FRACTION:.0%} of each digit, drawn with seed {options.seed}, are the test set."


def _idx(data: IdxSet) -> TaskLoader:
    def load(argument: str, options: TaskOptions, _: Progress | None) -> TaskSequence:
        if not argument:
            raise ConfigError(f"{data.name} needs the folder of its files: {data.name}=ROOT.")
        whole = read_set(data, Path(argument).expanduser())
        shape = tuple(whole.train[0].shape[1:])
        _no_images(data.name, shape[-1], options)
        tasks = tasks_by_classes(whole, options)
        return TaskSequence(data.name, tasks, shape, splits="The official splits.")

    return load


# name: (how it is written, what makes the tasks from what stands behind the name)
TASKS: dict[str, tuple[str, TaskLoader]] = {
    "digits": ("digits", _digits),
    "permuted-digits": ("permuted-digits or permuted-digits=NUMBER", _permuted_digits),
    "fashion-mnist": ("fashion-mnist=ROOT", _idx(FASHION_MNIST)),
    "mnist": ("mnist=ROOT", _idx(MNIST)),
    "folders": (FOLDERS_USAGE, folder_tasks),
    "paper": (PAPER_USAGE, paper_tasks),
}
