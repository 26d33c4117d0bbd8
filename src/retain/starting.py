"""Ctrl-C while the command `retain` starts or ends: a word in place of a traceback of imports.

Whoever imports the library in a program of their own is left alone, and so is a process that was
started to ignore Ctrl-C, as in the background of a script.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

    Handler = Callable[[int, FrameType | None], Any]

ENDED = 2  # by somebody's code, which said 0
INTERRUPTED = 130  # what a shell expects after Ctrl-C
AGAIN = 1.0  # seconds within which pressing it again means the same
COMMANDS = ("retain", "retain.exe", "retain-script.py")


_exit = os._exit  # see `tell_of_endings`
_heard = -AGAIN  # when Ctrl-C was a KeyboardInterrupt


def is_command() -> bool:
    """Whether this process is `retain` or `python -m retain`, and no child of one."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        return False
    if os.path.basename(sys.argv[0] if sys.argv else "") in COMMANDS:  # noqa: PTH119
        return True
    # While `python -m` looks for the module, "-m" stands in its place.
    return sys.argv[:1] == ["-m"] and "retain" in sys.orig_argv[1:]


def quiet_interrupt() -> None:
    """From here on Ctrl-C ends the process at once: nothing has begun that could be lost.

    `loud_interrupt` ends it. Imports would swallow a KeyboardInterrupt, or turn it into any error.
    """
    _exchange((signal.default_int_handler, _interrupt), _end)


def loud_interrupt() -> bool:
    """From here on Ctrl-C is a KeyboardInterrupt again; whether it was not."""
    return _exchange((_end,), _interrupt)


def deaf_at_the_end() -> None:
    """Register that Ctrl-C changes nothing once all work is done: neither message nor exit code.

    While Python takes itself down it hears nothing any more, so that the system would end it.
    """
    atexit.register(_exchange, (signal.default_int_handler, _interrupt, _end), signal.SIG_IGN)


def _exchange(before: tuple[Handler, ...], after: Handler | signal.Handlers) -> bool:
    if signal.getsignal(signal.SIGINT) not in before:
        return False
    try:
        signal.signal(signal.SIGINT, after)
    except ValueError:  # not the main thread
        return False
    return True


def tell_of_endings() -> None:
    """From here on `os._exit`, with which somebody's code may end the command, is no silent 0.

    Children that are forked end as ever.
    """
    end, command = os._exit, os.getpid()

    def told(status: int) -> NoReturn:
        if os.getpid() == command:
            os.write(2, f"Error: Something ended the command from within ({status}).\n".encode())
            end(status or ENDED)
        end(status)

    os._exit = told


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Raise; what ends the work, and says how to go on with it, is not interrupted itself."""
    global _heard  # noqa: PLW0603  (a signal handler has nowhere else to keep it)
    if not _was_heard():
        _heard = time.monotonic()
        raise KeyboardInterrupt


def _end(_number: int, _frame: FrameType | None) -> None:
    if not _was_heard():
        os.write(2, b"Interrupted.\n")
        _exit(INTERRUPTED)


def _was_heard() -> bool:
    return time.monotonic() - _heard < AGAIN
