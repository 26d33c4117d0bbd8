"""Every step of every torch optimizer in the process, as those hear of it who want to."""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakSet

from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class StepListener(Protocol):
    """Who wants to hear of steps."""

    def before(self, optimizer: Optimizer) -> None:
        """The optimizer is about to move weights."""

    def after(self, optimizer: Optimizer) -> None:
        """It has, and so has everything that is attached to it; may be told twice."""


_listeners: WeakSet[StepListener] = (
    WeakSet()
)  # weakly: a memory that is done with hears nothing more
_listening = False


def listen(listener: StepListener) -> None:
    """Tell `listener` of every step from here on, for as long as it lives."""
    global _listening  # noqa: PLW0603  (torch's hooks are as global)
    _listeners.add(listener)
    if not _listening:
        _listening = True
        register_optimizer_step_pre_hook(_before)
        register_optimizer_step_post_hook(_after)


def listeners() -> list[StepListener]:
    """All that hear of steps."""
    return list(_listeners)


def _before(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for listener in listeners():
        listener.before(optimizer)


def is_done(optimizer: Optimizer) -> None:
    """Its step is done, and who is told of that now may use a memory, or raise.

    After that torch tells the listeners as well, but for an error, after which it calls no hook.
    """
    _after(optimizer, None, None)


def _after(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for listener in listeners():
        listener.after(optimizer)
