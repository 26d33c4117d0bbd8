"""`retain inspect`: what a file of importance holds."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from retain import files
from retain.cli.speaking import out, plainly
from retain.errors import FileError
from retain.importance import Importance


@plainly
def inspect(
    file: Annotated[Path, typer.Argument(help="What `retain importance` or `.save(…)` wrote.")],
    plot: Annotated[
        Path | None, typer.Option(help="Draw Ω by layer into this picture (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Look at Ω in a file: for each layer its mean, its share, its largest, how it was obtained.

    [bold]Example[/]

    retain inspect omega.safetensors --plot omega.png
    """
    what, omega = _read(file)
    out.print(what, soft_wrap=True)
    out.print(omega.summary())
    if plot is not None:
        out.print(str(omega.plot(plot)), soft_wrap=True)


def importance_in(file: Path) -> Importance:
    """The Ω in a file, whichever of the two wrote it.

    Raises:
        FileError: it is neither, or cannot be read.
    """
    return _read(file)[1]


def _read(file: Path) -> tuple[str, Importance]:
    """What the file is, and the Ω in it: of `Importance.save`, or of a memory's `save`."""
    with suppress(FileError):
        return _of_memory(file)
    omega = Importance.load(file)
    return str(omega), omega


def _of_memory(file: Path) -> tuple[str, Importance]:
    tensors, header = files.read(file, "memory")
    total = Importance({}, 0)
    for key, omega in tensors.items():
        kind, _, name = key.partition("/")
        if kind.startswith("importance."):  # one for each term; EWC keeps a term per task
            total = total + Importance({name: omega}, 0)
    said = f"{header['method']}, strength {header['strength']:g}, {header['tasks']} tasks"
    return said, Importance(total, header["samples"], header["routes"])
