"""What a study can be run on: the paper's eight data sets, or stand-ins for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from retain.errors import ConfigError
from retain.studies.paper import PAPER, QUICK, published_pairs, published_sequence
from retain.tasks import TaskOptions
from retain.tasks.digits import TEST_FRACTION
from retain.tasks.folders import USAGE, ImageFolder, parsed, scanned
from retain.tasks.paper import Inspection, inspect_data, read_official
from retain.tasks.paper.data_sets import paper_set
from retain.tasks.paper.tasks import splits_said
from retain.tasks.splits import dealt


@dataclass(frozen=True)
class Order:
    """Tasks in an order.

    Attributes:
        name: such as "birds → scenes".
        settings: the fields of a config that say which tasks they are.
        first_classes: the names of the first task's classes, found without training anything.
    """

    name: str
    settings: Mapping[str, Any]
    first_classes: Callable[[], tuple[str, ...]]


@dataclass(frozen=True)
class Orders:
    """What can be run, what cannot and why, and what is not as it was published."""

    found: tuple[Order, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    altered: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class Material(Protocol):
    """Data that a study is made of."""

    @property
    def data(self) -> str:
        """The data as they were asked for."""

    @property
    def stand_in(self) -> str:
        """What stands in for the paper's data sets; "" where they are the paper's."""

    @property
    def splits(self) -> str:
        """A sentence on how the splits were made."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The fields of a config that the data come with."""

    @property
    def quick(self) -> Mapping[str, Any]:
        """What a reduced version changes of it."""

    def pairs(self) -> Orders:
        """Two tasks each, as in Tables 2 and 3."""

    def long(self) -> Orders:
        """All tasks in one order, or none."""


def joined(names: tuple[str, ...] | list[str]) -> str:
    """Tasks in their order: `a → b`."""
    return " → ".join(names)


# How far a copy may be from the official counts before its numbers are another data set's.
FAR = 0.1


@dataclass
class PaperData:
    """The data sets in the folder `data`; `sets` of them, or as many as a study uses."""

    data: str
    sets: tuple[str, ...] = ()
    stand_in: str = ""
    splits: str = splits_said(TaskOptions())
    protocol: Mapping[str, Any] = field(default_factory=lambda: PAPER)
    quick: Mapping[str, Any] = field(default_factory=lambda: QUICK)
    _inspected: dict[str, Inspection] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(self.data).expanduser()
        for name in self.sets:
            paper_set(name)
        if not self.root.is_dir():
            raise ConfigError(
                f"{self.root} is not a folder. Give the folder that holds the paper's data sets, "
                "or stand-ins: digits, or folders:a=PATH,b=PATH. `retain datasets` says what each "
                "data set needs."
            )

    def pairs(self) -> Orders:
        """The paper's sequences of two of the sets; where there is none, the sets one by one."""
        among = [pair for pair in published_pairs() if not self.sets or {*pair} <= {*self.sets}]
        return self._orders(among or list(pairwise(self.sets)))

    def long(self) -> Orders:
        """The sets that are there, in the order of the paper."""
        wanted = [name for name in published_sequence() if not self.sets or name in self.sets]
        reasons = {name: reason for name in wanted if (reason := self._reason(name))}
        there = [name for name in wanted if name not in reasons]
        found = (self._order(there),) if there else ()
        return Orders(found, reasons, self._altered(there), self._remarks(there))

    def _orders(self, pairs: Iterable[tuple[str, str]]) -> Orders:
        found, skipped = [], {}
        for pair in pairs:
            reasons = [reason for name in pair if (reason := self._reason(name))]
            if reasons:
                skipped[joined(pair)] = " ".join(reasons)
            else:
                found.append(pair)
        used = sorted({name for pair in found for name in pair})
        orders = tuple(self._order(pair) for pair in found)
        return Orders(orders, skipped, self._altered(used), self._remarks(used))

    def _order(self, names: Iterable[str]) -> Order:
        names = list(names)
        settings = {"tasks": f"paper:{','.join(names)}={self.root}"}
        return Order(joined(names), settings, partial(self._classes, names[0]))

    def _classes(self, name: str) -> tuple[str, ...]:
        return read_official(paper_set(name), self.root).classes

    def _look(self, name: str) -> Inspection:
        if name not in self._inspected:
            (self._inspected[name],) = inspect_data(self.root, [name])
        return self._inspected[name]

    def _reason(self, name: str) -> str:
        """Why a data set cannot be used; nothing if it can."""
        seen = self._look(name)
        if seen.state not in ("missing", "broken"):
            return ""
        said = "; ".join(seen.problems)
        return f"{seen.title}: {said}" + (f". {seen.source}" if seen.state == "missing" else "")

    def _altered(self, names: Iterable[str]) -> dict[str, str]:
        """What is so far from the official counts that it is another data set."""
        return {name: _counts(self._look(name)) for name in names if _is_far(self._look(name))}

    def _remarks(self, names: Iterable[str]) -> tuple[str, ...]:
        seen = [self._look(name) for name in names]
        return tuple(
            f"{one.name}: {'; '.join(one.problems)}"
            for one in seen
            if one.state == "usable" and not _is_far(one)
        )


def _is_far(seen: Inspection) -> bool:
    found, expected = seen.found, seen.expected
    if found is None:  # still packed
        return False
    if found.classes != expected.classes:
        return True
    both = ((found.train, expected.train), (found.test, expected.test))
    return any(abs(count - wanted) > FAR * wanted for count, wanted in both)


def _counts(seen: Inspection) -> str:
    if seen.found is None:
        return ""
    kinds = (("classes", "classes"), ("train", "images to learn from"), ("test", "test images"))
    return ", ".join(
        f"{getattr(seen.found, kind)} of {getattr(seen.expected, kind)} {what}"
        for kind, what in kinds
        if getattr(seen.found, kind) != getattr(seen.expected, kind)
    )


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
            raise ConfigError(f"A study needs at least two tasks; got {self.data!r}. Give {USAGE}.")
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
