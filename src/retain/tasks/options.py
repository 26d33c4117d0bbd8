"""What can be chosen about tasks: each option described once, with its default and its bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from retain.closest import did_you_mean
from retain.header import shown
from retain.ranges import Range, described, fits
from retain.tasks.task import Scenario

Augmentation = Literal["none", "crop-flip"]
LARGEST = 2**31 - 1  # of counts
LARGEST_SEED = 2**53


def option(default: Any, description: str, *, left_out: str = "", **more: Any) -> Any:
    """A field with its default, what it is, and what happens where nobody gives it.

    `more` is for those who check values or show options: bounds such as `ge`, by pydantic's names,
    and `json_schema_extra` for what the command line and the documentation want to know.
    """
    extra = {**more.pop("json_schema_extra", {}), "left_out": left_out}
    metadata = {"description": description, "json_schema_extra": extra, **more}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TaskChoices:
    """What a run lets its user choose about tasks. Each field says what it is."""

    image_size: int | None = option(
        None, "side of the square that image files are cropped to", left_out="224",
        ge=1, le=LARGEST,
    )  # fmt: skip
    augmentation: Augmentation = option(
        "none",
        "how image files are varied in training: none, or crop-flip (random squares, half of them "
        "mirrored); importance and evaluation always use the central square",
    )
    loaders: int = option(
        0,
        "processes that read image files if they do not fit in memory; with 0, threads read them",
        ge=0, le=1024,
    )  # fmt: skip
    classes_per_task: int | None = option(
        None, "number of classes in a task",
        left_out="two if one data set is divided into tasks, and all classes of a folder if each "
        "folder is a task",
        ge=1, le=LARGEST,
    )  # fmt: skip
    class_order_seed: int | None = option(
        None, "seed that shuffles the classes before they are divided among tasks",
        left_out="they keep their order", ge=0, le=LARGEST_SEED,
    )  # fmt: skip
    samples_per_class: int | None = option(
        None, "use at most this many examples of each class, for training and for testing",
        ge=1, le=LARGEST,
    )  # fmt: skip
    scenario: Scenario | None = option(
        None,
        "one head per task (task-incremental) or one for all tasks (domain-incremental); telling "
        "the classes of all tasks apart (class-incremental) is beyond these methods",
        left_out="whichever suits the tasks",
    )


@dataclass(frozen=True, kw_only=True)
class TaskOptions(TaskChoices):
    """How a task sequence is made. Each field says what it is."""

    val_fraction: float = option(
        0.0,
        "the part of train that becomes the validation split where the data has none of its own; "
        "0 leaves such tasks without one",
        ge=0, le=1,
    )  # fmt: skip
    halve_test: bool = option(
        True,
        "halve the official test sets of the paper's data into validation and test, as the survey "
        "does, or measure on them whole",
    )
    corrupt_fraction: float = option(
        0.05, "how many of a folder's images may be unreadable; more is an error", ge=0, le=1
    )
    cache_bytes: int = option(
        4 * 2**30,
        "memory that decoded images may take in all; beyond it files are read again",
        ge=0,
    )
    seed: int = option(0, "of the splits and the permutations; not of the training")


def unfit(options: TaskOptions) -> Iterator[str]:
    """A sentence for each option whose value is not what its field says."""
    kinds = get_type_hints(TaskOptions)
    for one in fields(options):
        value, kind = getattr(options, one.name), kinds[one.name]
        bounds = Range(one.metadata.get("ge", -math.inf), most=one.metadata.get("le", math.inf))
        first, *rest = get_args(kind) if type(None) in get_args(kind) else (kind,)
        bounded = first in (int, float)
        known = (Annotated[first, bounds] if bounded else first, *rest)
        if not any(fits(value, one_kind) for one_kind in known):
            expected = " or ".join(described(one_kind).strip() for one_kind in known)
            words = [word for word in get_args(first) if isinstance(value, str)]
            near = did_you_mean(value, words) if words else ""
            about = f" That is {one.metadata['description']}." if words else ""
            yield f"{one.name} is {shown(value)}; expected {expected}.{near}{about}"
