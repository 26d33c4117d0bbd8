"""What a study can be run on: the paper's data sets, or stand-ins for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


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
