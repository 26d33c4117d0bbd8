"""The command `retain`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # what a shell expects after Ctrl-C
NOT_INSTALLED = 2


def main() -> None:
    """Run the command line; without the extra `study`, say how to install it."""
    before = signal.signal(signal.SIGINT, _before_anything_began)
    try:
        from retain.cli.app import app
    except ImportError as error:
        _tell_what_is_missing(error)
    signal.signal(signal.SIGINT, before)
    for stream in (sys.stdout, sys.stderr):  # a name that is not UTF-8 is shown, not an error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="retain")


def _before_anything_began(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ctrl-C while modules are imported, which would swallow it or come back as any error."""
    os.write(2, b"Interrupted.\n")
    os._exit(INTERRUPTED)


def _tell_what_is_missing(error: ImportError) -> NoReturn:
    from retain.errors import MissingExtraError

    if isinstance(error, MissingExtraError):
        print(error, file=sys.stderr)
    elif error.name is None or error.name.partition(".")[0] in ("retain", "torch"):
        raise error
    else:
        print(
            f'The command line needs {error.name}. Install it with: pip install "retain[study]"',
            file=sys.stderr,
        )
    sys.exit(NOT_INSTALLED)
