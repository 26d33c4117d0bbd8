"""What is known of optimizers: which held weights they step, and whether attachments run."""

from __future__ import annotations

import weakref
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from retain.memory.attachment import Attachment
from retain.memory.places import Place, StillThere
from retain.saying import warn


class Said:
    """Says everything once."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        """It was said elsewhere."""
        self._keys.add(key)

    def __call__(self, key: str, text: str) -> None:
        """Warn, unless what goes by this key was said."""
        if key not in self._keys:
            self._keys.add(key)
            warn(text)


class SteppedOptimizer(NamedTuple):
    """What is known of an optimizer: its parameters when it was looked at, and ours among them."""

    signature: tuple[tuple[int, bool], ...]
    places: object  # the dictionary of places then
    ours: tuple[Place, ...]
    standing: StillThere  # whether ours are where they were

    @property
    def moves(self) -> bool:
        """Whether some of ours are trained; frozen ones may lie in it too."""
        return any(place.parameter.requires_grad for place in self.ours)


class AttachedOptimizer:
    """What is known of an attachment: whether its optimizer's hooks run, and how often."""

    def __init__(self, attachment: Attachment) -> None:
        self.form = attachment.form
        self.steps = 0
        self.ran = True
        self.waits = False
        self.hooks: list[RemovableHandle] = []
        self._attachment = weakref.ref(attachment)

    def goes_last(self) -> None:
        """See to it that other hooks before a step are done when the penalty joins."""
        attachment = self._attachment()
        if attachment is not None:
            attachment.go_last()

    def runs(self, _optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        """The hook before its step."""
        self.ran = True

    def remove(self) -> None:
        """Take all hooks away."""
        for hook in self.hooks:
            hook.remove()


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All that an optimizer holds, group by group."""
    return [p for group in optimizer.param_groups for p in group["params"]]
