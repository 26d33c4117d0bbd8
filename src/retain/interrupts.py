"""Ctrl-C waits while what must be done as a whole is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

_here = threading.local()  # .waiting: the main thread, which alone hears Ctrl-C, is in here already


def uninterrupted() -> AbstractContextManager[None]:
    """Within it Ctrl-C waits: what is begun is finished first, then whoever hears it is told."""
    if (
        getattr(_here, "waiting", False)
        or threading.current_thread() is not threading.main_thread()
    ):
        return nullcontext()  # nobody hears it, or not before whoever else waits is done
    return _deferring()


@contextmanager
def _deferring() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *how: pressed.append(how))
    _here.waiting = True
    try:
        yield
    finally:
        _here.waiting = False
        signal.signal(signal.SIGINT, before)
    if pressed:
        before(*pressed[0])
