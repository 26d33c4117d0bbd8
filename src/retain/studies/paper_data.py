"""The paper's eight data sets below one folder, those that are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from retain.errors import ConfigError
from retain.studies.material import Order, Orders, joined
from retain.studies.protocol import PAPER, QUICK
from retain.studies.published import published_pairs, published_sequence
from retain.tasks import TaskOptions
from retain.tasks.paper import Inspection, inspect_data, read_official
from retain.tasks.paper.load import splits_said
from retain.tasks.paper.registry import paper_set

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
