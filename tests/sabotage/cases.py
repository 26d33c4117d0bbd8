"""The register of cases: what is done, and what is to come of it."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from .scene import THERE, TOLD, ByHand, Scene, distance, listening

SAME = 2e-5  # weights that two loops in single precision give
DIFFERENT = 1e-3  # … and what protection makes of them at the least
SECOND = 2  # a message has to come before this step is done


class Ended(NamedTuple):
    """Where a protected loop ended, where one by hand ends, and where without protection."""

    model: nn.Module
    by_hand: nn.Module
    free: nn.Module


@dataclass(frozen=True)
class Case:
    """One way to lose protection.

    Attributes:
        title: for the table.
        group: what is at fault.
        act: takes steps; returns `Ended` where protection is to be there.
        says: what the message says, where one is to come.
        make: the network of the scene.
    """

    title: str
    group: str
    act: Callable[[Scene], Ended | None]
    says: str | None
    make: Callable[[], nn.Module]

    @property
    def key(self) -> str:
        """Group and title."""
        return f"{self.group}: {self.title}"

    def outcome(self) -> str:
        """ "protected" or "a message"; anything else says what went wrong."""
        gc.collect()  # nothing of an earlier case is left to speak up
        scene = Scene.new(self.make)
        ended = None
        with listening(scene) as said:
            ended = self.act(scene)
        early = [text for made, text in said if made < SECOND]
        if self.says is not None:
            if any(re.search(self.says, text) for text in early):
                return TOLD
            return f"UNDETECTED: no message /{self.says}/ before the second step, but {said}"
        if ended is None:
            return f"UNDETECTED: broke off with {said}"
        if said:
            return f"a false alarm: {said}"
        if not distance(ended.by_hand, ended.free) > DIFFERENT:
            return "a case that shows nothing: protection makes no difference"
        apart = distance(ended.model, ended.by_hand)
        return THERE if apart < SAME else f"UNDETECTED: {apart:.2g} from the loop by hand"


CASES: list[Case] = []


def sabotage(group: str, title: str, *, says: str | None = None, make: Callable[[], nn.Module]):
    """Register a case."""

    def register(act: Callable[[Scene], Ended | None]) -> Callable[[Scene], Ended | None]:
        CASES.append(Case(title, group, act, says, make))
        return act

    return register


def ended(scene: Scene, memory, model=None, start=None, **how) -> Ended:
    """The end of a case that took the plain steps on all data, from `start` (a copy before)."""
    hand, free = ByHand(memory, start), ByHand(memory, start)
    return Ended(
        scene.model if model is None else model,
        hand.train(scene.data, **how),
        free.train(scene.data, protect=False, **how),
    )
