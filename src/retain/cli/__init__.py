"""The command `retain`."""

from __future__ import annotations

import sys
from typing import NoReturn

from retain.starting import deaf_at_the_end, quiet_interrupt, tell_of_endings

NOT_INSTALLED = 2


def main() -> None:
    """Run the command line; without the extra `study`, say how to install it.

    Ctrl-C is heard by commands (see `speaking.plainly`); before and after it ends the process.
    """
    quiet_interrupt()
    deaf_at_the_end()
    try:
        from retain.cli.app import app
    except ImportError as error:
        _tell_what_is_missing(error)
    for stream in (sys.stdout, sys.stderr):  # a name that is not UTF-8 is shown, not an error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    tell_of_endings()
    app(prog_name="retain")


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
