"""Which modules and parameters a model consists of, and whether it still does."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import is_

from torch import nn


class Structure:
    """The modules of a model and their parameters, with their names, as they were found.

    It is asked before every step, so nothing is walked through again: modules keep what is in them
    in dictionaries, of which views are kept here, and these must show the same objects.
    """

    def __init__(self, root: nn.Module) -> None:
        self._views: list[Iterable[object]] = []
        for module in root.modules():
            for inside in (module._modules, module._parameters):
                self._views += (inside.keys(), inside.values())
        self._held = list(chain.from_iterable(self._views))

    @property
    def is_whole(self) -> bool:
        """Whether nothing was put in, taken out or replaced."""
        now = list(chain.from_iterable(self._views))
        return len(now) == len(self._held) and all(map(is_, now, self._held))
