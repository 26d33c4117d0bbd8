"""Stand-ins, for those who do not have the paper's data: digits, and folders of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from retain.errors import ConfigError
from retain.studies.material import Order, Orders, joined
from retain.tasks.digits import TEST_FRACTION
from retain.tasks.folders import USAGE, ImageFolder, parsed, scanned
from retain.tasks.splits import dealt

DIGITS = tuple("0123456789")
HALF = 5
# Orders of the classes: one sequence of two tasks for each; None is 0 … 9.
CLASS_ORDERS = (None, 1, 2, 3)
# Many small steps, in which fine-tuning forgets tens of points.
DIGITS_PROTOCOL: Mapping[str, Any] = {
    "model": "mlp",
    "optimizer": "sgd",
    "lr": 0.05,
    "epochs": 10,
    "batch_size": 16,
    "seeds": (0, 1, 2),
}
BATCH = 16
FOLDERS_PROTOCOL: Mapping[str, Any] = {
    "model": "cnn",
    "optimizer": "sgd",
    "lr": 0.01,
    "epochs": 10,
    "batch_size": BATCH,
    "augmentation": "crop-flip",
    "image_size": 32,  # of the small networks; others get the size of photographs
    "seeds": (0,),
}
FOLDERS_QUICK: Mapping[str, Any] = {"epochs": 1, "samples_per_class": 20}


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits, five classes then the other five, in four orders."""

    data: str = "digits"
    stand_in: str = "scikit-learn's handwritten digits"
    splits: str = f"{TEST_FRACTION:.0%} of each digit, drawn with seed 0, are the test set."
    protocol: Mapping[str, Any] = field(default_factory=lambda: DIGITS_PROTOCOL)
    quick: Mapping[str, Any] = field(default_factory=lambda: {"epochs": 3, "seeds": (0,)})

    def pairs(self) -> Orders:
        """Five digits, then the other five."""
        return Orders(tuple(_dealt(HALF, order) for order in CLASS_ORDERS))

    def long(self) -> Orders:
        """Two digits, then two others, five times."""
        return Orders((_dealt(2, None),))


def _dealt(per_task: int, class_order: int | None) -> Order:
    groups = dealt(len(DIGITS), per_task, order_seed=class_order)
    names = [tuple(DIGITS[number] for number in group) for group in groups]
    settings = {"tasks": "digits", "classes_per_task": per_task, "class_order_seed": class_order}
    return Order(joined(["-".join(group) for group in names]), settings, lambda: names[0])


@dataclass
class Folders:
    """Folders of images, a task each; `sets` of them, or all."""

    data: str
    sets: tuple[str, ...] = ()
    splits: str = "The folders' own splits."

    def __post_init__(self) -> None:
        named = dict(parsed(self.data.partition(":")[2]))
        unknown = [name for name in self.sets if name not in named]
        if unknown:
            raise ConfigError(
                f"--sets names {', '.join(unknown)}, but the folders are {', '.join(named)}."
            )
        chosen = self.sets or tuple(named)
        if len(chosen) < 2:
            raise ConfigError(f"A study needs two tasks or more; got {self.data!r}. Give {USAGE}.")
        self.folders: dict[str, ImageFolder] = {name: scanned(name, named[name]) for name in chosen}

    @property
    def stand_in(self) -> str:
        """The folders by their names."""
        return f"the folders {', '.join(self.folders)}"

    @property
    def protocol(self) -> Mapping[str, Any]:
        """No batch is larger than the smallest training set."""
        return {**FOLDERS_PROTOCOL, "batch_size": self._batch(None)}

    @property
    def quick(self) -> Mapping[str, Any]:
        """A few images of each class."""
        few = FOLDERS_QUICK["samples_per_class"]
        return {**FOLDERS_QUICK, "batch_size": self._batch(few)}

    def _batch(self, most: int | None) -> int:
        sizes = [
            sum(len(files[:most]) for files in folder.splits["train"].values())
            for folder in self.folders.values()
        ]
        return min(BATCH, *sizes)

    def pairs(self) -> Orders:
        """Of a and b both orders; of a, b and c those in which the paper has three data sets."""
        first, second, *others = self.folders
        pairs = [(first, second), (second, first)]
        if others:  # as Flowers, Birds and Scenes
            pairs = [(second, others[0]), (others[0], second), (first, second), (first, others[0])]
        unused = tuple(f"not used in sequences of two: {name}" for name in others[1:])
        return Orders(tuple(self._order(pair) for pair in pairs), remarks=unused)

    def long(self) -> Orders:
        """All of them, in the order that they were given in."""
        return Orders((self._order(tuple(self.folders)),))

    def _order(self, names: tuple[str, ...]) -> Order:
        listed = ",".join(f"{name}={self.folders[name].root}" for name in names)
        return Order(
            joined(names), {"tasks": f"folders:{listed}"}, partial(self._classes, names[0])
        )

    def _classes(self, name: str) -> tuple[str, ...]:
        return tuple(self.folders[name].classes)
