"""The command `retain`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without the extra `study`, say how to install it."""
    try:
        from retain.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("retain", "torch"):
            raise
        print(
            f'The command line needs {error.name}. Install it with: pip install "retain[study]"',
            file=sys.stderr,
        )
        sys.exit(2)
    app()
