"""At which weights observing began: samples that are observed at others belong to another Ω."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retain.memory.movement import can_be_read, elements, spread
from retain.sharding import is_sharded


class Outset:
    """Which parameters were observed from the first sample on, and a few elements of each then.

    The elements tell, not the parameters themselves: a copy in the place of one is the same.

    Attributes:
        said: whether it was said that they are others by now.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.said = False
        self._then = {name: _Seen.of(p) for name, p in parameters.items()}

    def joined(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """Names of those that were not observed then."""
        return [name for name in parameters if name not in self._then]

    def others(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """Names of those that hold something else by now, in the coarser type of then and now."""
        then = self._then
        with torch.no_grad():
            return [n for n, p in parameters.items() if (seen := then.get(n)) and seen.differs(p)]


class _Seen(NamedTuple):
    """A few elements of a parameter, and where they lie in it."""

    kind: type
    shape: torch.Size
    where: Tensor
    elements: Tensor

    @classmethod
    def of(cls, p: nn.Parameter) -> _Seen | None:
        """None where there is nothing to be looked at."""
        if not can_be_read(p) or is_sharded(p):
            return None
        where = spread(p)
        return cls(type(p), p.shape, where, elements(p, where))

    def differs(self, p: nn.Parameter) -> bool:
        """Whether others are there now; one of another shape is told of where it is observed."""
        if p.shape != self.shape or type(p) is not self.kind or p.is_meta:
            return False
        usual = p.dtype.itemsize > 1 and p.device == self.where.device
        now = torch.take(p, self.where) if usual else elements(p, self.where)
        then = self.elements
        if now.dtype != then.dtype or now.device != then.device:
            coarse = then.dtype if then.element_size() < now.element_size() else now.dtype
            now, then = now.to(coarse), then.to(now.device, coarse)
        return not torch.equal(now, then)
