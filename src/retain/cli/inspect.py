"""`retain inspect`: what a file of importance holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retain.cli.flags import path
from retain.cli.speaking import out, plainly
from retain.memory.memory_file import read_importance


@plainly
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="A file that `retain importance` or `memory.save(…)` wrote.",
            parser=path,
            metavar="FILE",
        ),
    ],
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw Ω by layer into this picture (.png, .svg, .pdf).",
            parser=path,
            metavar="PATH",
        ),
    ] = None,
) -> None:
    """Show Ω in a file: for each layer its mean, share, maximum, and how it was computed.

    [bold]Example[/]

    retain inspect omega.safetensors --plot omega.png
    """
    what, omega = read_importance(file)
    out.print(what, soft_wrap=True)
    out.print(omega.summary())
    if plot is not None:
        out.print(str(omega.plot(plot)), soft_wrap=True)
