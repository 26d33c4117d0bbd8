"""Tasks from the paper's data sets, one each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from retain.errors import ConfigError
from retain.tasks.crops import PAPER_SIZE, Crops
from retain.tasks.images import MemoryBudget, Progress
from retain.tasks.options import TaskOptions
from retain.tasks.paper.data_sets import PAPER_SETS, paper_set, read_official
from retain.tasks.paper.official import Official
from retain.tasks.reading import Images, Reading
from retain.tasks.splits import SURVEY_SEED, halves
from retain.tasks.task import Task, TaskSequence

USAGE = "paper=ROOT or paper:flowers,birds=ROOT"


def paper_tasks(
    argument: str, options: TaskOptions, progress: Progress | None = None
) -> TaskSequence:
    """The data sets `NAMES=ROOT` (all eight where there are no names), a task each.

    Raises:
        ConfigError: an unknown name, one that comes twice, or a choice of classes, which these
            tasks do not take.
        FileError: a data set is not there, or its files are not as they should be.
    """
    names, root = parsed(argument)
    if options.classes_per_task is not None:
        raise ConfigError(
            "classes_per_task was given, but each data set of the paper is one task. Leave it out."
        )
    crops = Crops(options.image_size or PAPER_SIZE)
    budget = MemoryBudget(options.cache_bytes)
    tasks: list[Task] = []
    notes: list[str] = []
    for name in names:
        data = paper_set(name)
        official = read_official(data, root)
        notes += [f"{name}: {remark}." for remark in official.remarks]
        reading = Reading(name, root, official.classes, crops, budget, options, progress)
        tasks.append(_task(official, reading))
        notes += reading.notes()
    shape = (3, crops.size, crops.size)
    return TaskSequence(
        "paper", tuple(tasks), shape, notes=tuple(notes), splits=splits_said(options)
    )


def parsed(argument: str) -> tuple[list[str], Path]:
    """(names of data sets, folder they lie in) of `NAMES=ROOT` or `ROOT`."""
    named, separator, root = argument.partition("=")
    if not separator:
        named, root = "", named
    if not root.strip():
        raise ConfigError(f"paper:{argument} names no folder; expected {USAGE}.")
    names = [name.strip() for name in named.split(",") if name.strip()] or list(PAPER_SETS)
    for name in names:
        paper_set(name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"Named several times: {', '.join(twice)}. A data set is one task.")
    return names, Path(root.strip()).expanduser()


def _task(official: Official, reading: Reading) -> Task:
    train = reading.split("train", official.train.images, official.train.labels)
    if not reading.options.halve_test:
        test = reading.split("test", official.test.images, official.test.labels)
        task = Task(reading.name, official.classes, train, test)
        return task.with_validation(reading.options.val_fraction, seed=reading.options.seed)
    val, test = (
        reading.split(name, *_chosen(official, half))
        for name, half in zip(("val", "test"), halves(torch.tensor(official.test.labels)))
    )
    return replace(Task(reading.name, official.classes, train, test), val=val)


def _chosen(official: Official, half: Tensor) -> tuple[Images, list[int]]:
    images, numbers = official.test.images, half.tolist()
    chosen: Images = images[half] if isinstance(images, Tensor) else [images[n] for n in numbers]
    return chosen, [official.test.labels[number] for number in numbers]


def splits_said(options: TaskOptions) -> str:
    """How the official test sets are used, in a sentence."""
    if options.halve_test:
        return (
            "The official test set is halved, class by class, into validation and test "
            f"(seed {SURVEY_SEED})."
        )
    return "The official test set is used whole."
