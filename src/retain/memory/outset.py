"""At which weights observing began: samples that are observed at others belong to another Ω."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from retain.memory.movement import can_be_read, elements, same_elements, spread, version
from retain.sharding import is_sharded


class Outset:
    """Which parameters were observed from the first sample on, and a few elements of each then.

    The elements tell, not the parameters themselves: a copy in the place of one is the same. They
    are looked at where a parameter was replaced or written to, and of one other, each time another,
    since writes through `.data` leave no mark: those who observe every batch by itself do not wait
    for all of them.

    Attributes:
        said: whether it was said that they are others by now.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.said = False
        self._then = {name: _Glimpse.of(p) for name, p in parameters.items()}
        self._marks = {name: _mark(p) for name, p in parameters.items()}
        self._turn = 0

    @classmethod
    def restored(cls, kept: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Outset:
        """As `elements` told it, for parameters of these shapes."""
        outset = cls({})
        outset._then = {
            name: _Glimpse(nn.Parameter, torch.Size(shapes[name]), seen) if len(seen) else None
            for name, seen in kept.items()
            if name in shapes
        }
        return outset

    @property
    def elements(self) -> dict[str, Tensor]:
        """By name, a few elements of each ordinary parameter; none of the others, for a file."""
        return {
            name: one.elements if one and one.kind is nn.Parameter else torch.empty(0)
            for name, one in self._then.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_marks": {}}  # a copy is of other parameters

    def joined(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """Names of those that were not observed then."""
        return [name for name in parameters if name not in self._then]

    def others(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """Names of those that hold something else by now, in the coarser type of then and now."""
        doubtful = [name for name, p in parameters.items() if not self._is_marked(name, p)]
        if parameters:
            self._turn = (self._turn + 1) % len(parameters)
            doubtful.append(list(parameters)[self._turn])
        if any(self._differs(name, parameters[name]) for name in doubtful):
            # where one has changed without a mark, others may have, too
            return [name for name, p in parameters.items() if self._differs(name, p)]
        for name in doubtful:
            self._marks[name] = _mark(parameters[name])
        return []

    def _is_marked(self, name: str, p: nn.Parameter) -> bool:
        """Whether it is the one that was looked at last, and nobody has written to it."""
        one, written = self._marks.get(name, (None, 0))
        return one is not None and one() is p and written == version(p)

    def _differs(self, name: str, p: nn.Parameter) -> bool:
        seen = self._then.get(name)
        return seen is not None and seen.differs(p)


def _mark(p: nn.Parameter) -> tuple[ref[nn.Parameter], int]:
    return ref(p), version(p)


class _Glimpse(NamedTuple):
    """A few elements of a parameter, spread over it."""

    kind: type
    shape: torch.Size
    elements: Tensor

    @classmethod
    def of(cls, p: nn.Parameter) -> _Glimpse | None:
        """None where there is nothing to be looked at."""
        if not can_be_read(p) or is_sharded(p):
            return None
        return cls(type(p), p.shape, elements(p, spread(p)))

    def differs(self, p: nn.Parameter) -> bool:
        """Whether others are there now; one of another shape is told of where it is observed."""
        if p.shape != self.shape or type(p) is not self.kind or p.is_meta:
            return False
        return not same_elements(elements(p, spread(p)), self.elements)
