"""What can be chosen about tasks, with the defaults that the command line and the docs show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retain.tasks.task import Scenario

Augmentation = Literal["none", "crop-flip"]


@dataclass(frozen=True)
class TaskOptions:
    """How a task sequence is made.

    Attributes:
        scenario: a head per task or one for all; None is what suits the tasks.
        classes_per_task: classes that a task gets; None is two where one data set makes all the
            tasks, and all the classes of a folder where each folder is a task.
        class_order_seed: shuffles the classes before they are dealt out; None keeps their order.
        samples_per_class: at most so many examples of a class in each split; None is all of them.
        val_fraction: the part of train that becomes the validation split where the data has none
            of its own; 0 leaves such tasks without one.
        halve_test: halve the official test sets of the paper's data into validation and test, as
            the survey does, or measure on them whole.
        image_size: side of the square that image files are cropped to; None is 224.
        augmentation: the training transform of image files: "none" is the one for evaluation,
            "crop-flip" random squares, half of them flipped.
        workers: processes that read image files which do not fit in memory; with 0 threads do.
        corrupt_fraction: how many of a folder's images may be unreadable; more is an error.
        cache_bytes: memory that decoded images may take in all; beyond it files are read again.
        seed: of the splits and the permutations; not of the training.
    """

    scenario: Scenario | None = None
    classes_per_task: int | None = None
    class_order_seed: int | None = None
    samples_per_class: int | None = None
    val_fraction: float = 0.0
    halve_test: bool = True
    image_size: int | None = None
    augmentation: Augmentation = "none"
    workers: int = 0
    corrupt_fraction: float = 0.05
    cache_bytes: int = 4 * 2**30
    seed: int = 0
