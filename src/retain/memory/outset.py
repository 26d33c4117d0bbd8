"""At which weights observing began: samples that are observed at others belong to another Ω."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retain.memory.movement import can_be_read, elements, spread
from retain.parameters import shape_of
from retain.sharding import is_sharded


class Outset:
    """Which parameters were observed from the first sample on, and a few elements of each then.

    The elements tell, not the parameters themselves: a copy in the place of one is the same.

    Attributes:
        said: whether it was said that they are others by now.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.said = False
        self._shapes = {name: shape_of(p) for name, p in parameters.items()}
        self._elements = {n: elements(p, spread(p)) for n, p in parameters.items() if _usable(p)}

    def joined(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """Names of those that were not observed then."""
        return [name for name in parameters if name not in self._shapes]

    def others(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """Names of those that hold something else by now, in the coarser type of then and now."""
        return [
            name
            for name, p in parameters.items()
            if name in self._elements and shape_of(p) == self._shapes[name] and _usable(p)
            if not _same(elements(p, spread(p)), self._elements[name])
        ]


def _usable(p: nn.Parameter) -> bool:
    return can_be_read(p) and not is_sharded(p)


def _same(now: Tensor, then: Tensor) -> bool:
    coarse = then.dtype if then.element_size() < now.element_size() else now.dtype
    return torch.equal(now.to(coarse), then.to(now.device, coarse))
