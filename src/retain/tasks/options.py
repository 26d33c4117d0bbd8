"""What can be chosen about tasks: each option described once, with its default and its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from retain.tasks.task import Scenario

Augmentation = Literal["none", "crop-flip"]
LARGEST = 2**31 - 1  # of counts
LARGEST_SEED = 2**53


def option(default: Any, description: str, **more: Any) -> Any:
    """A field with its default and what it is.

    `more` is for those who check values or show options: bounds such as `ge`, by pydantic's names,
    and `json_schema_extra` for what the command line and the documentation want to know.
    """
    if callable(default):
        return field(default_factory=default, metadata={"description": description, **more})
    return field(default=default, metadata={"description": description, **more})


@dataclass(frozen=True, kw_only=True)
class TaskChoices:
    """What a run lets its user choose about tasks. Each field says what it is."""

    image_size: int | None = option(
        None, "side of the square that image files are cropped to; 224 if left out",
        ge=1, le=LARGEST,
    )  # fmt: skip
    augmentation: Augmentation = option(
        "none",
        "what is done to image files in training: none, or crop-flip (random squares, half of "
        "them mirrored); importance and evaluation always see the square in the middle",
    )
    loaders: int = option(
        0, "processes that read image files which do not fit in memory; with 0 threads do",
        ge=0, le=1024,
    )  # fmt: skip
    classes_per_task: int | None = option(
        None,
        "classes that a task gets; if left out two where one data set makes all the tasks, and "
        "all the classes of a folder where each folder is a task",
        ge=1, le=LARGEST,
    )  # fmt: skip
    class_order_seed: int | None = option(
        None, "shuffles the classes before they are dealt out to tasks; if left out they keep "
        "their order", ge=0, le=LARGEST_SEED,
    )  # fmt: skip
    samples_per_class: int | None = option(
        None, "use no more than this many examples of each class, in training and in test",
        ge=1, le=LARGEST,
    )  # fmt: skip
    scenario: Scenario | None = option(
        None,
        "a head per task (task-incremental) or one for all (domain-incremental); if left out what "
        "suits the tasks",
    )


@dataclass(frozen=True, kw_only=True)
class TaskOptions(TaskChoices):
    """How a task sequence is made. Each field says what it is."""

    val_fraction: float = option(
        0.0,
        "the part of train that becomes the validation split where the data has none of its own; "
        "0 leaves such tasks without one",
    )
    halve_test: bool = option(
        True,
        "halve the official test sets of the paper's data into validation and test, as the survey "
        "does, or measure on them whole",
    )
    corrupt_fraction: float = option(
        0.05, "how many of a folder's images may be unreadable; more is an error"
    )
    cache_bytes: int = option(
        4 * 2**30,
        "memory that decoded images may take in all; beyond it files are read again",
    )
    seed: int = option(0, "of the splits and the permutations; not of the training")
