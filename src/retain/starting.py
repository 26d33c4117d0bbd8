"""Ctrl-C while the command `retain` starts: a word in place of a traceback of imports.

Whoever imports the library in a program of their own is left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

ENDED = 2  # by somebody's code, which said 0
INTERRUPTED = 130  # what a shell expects after Ctrl-C
COMMANDS = ("retain", "retain.exe", "retain-script.py")


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
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, _end)


def loud_interrupt() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"Interrupted.\n")
    os._exit(INTERRUPTED)
