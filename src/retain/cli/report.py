"""`retain report`: the page again, from results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retain import report as reporting
from retain import studies
from retain.cli.speaking import out, plainly


@plainly
def report(
    folder: Annotated[Path, typer.Argument(help="What `retain run` or `retain study` wrote to.")],
) -> None:
    """Make report.html and its pictures again from results.json.

    [bold]Example[/]

    retain report out
    """
    if studies.is_study(folder):
        studies.gather(folder)
    written = reporting.write(folder)
    out.print(reporting.table(folder))
    for path in written:
        out.print(str(path), soft_wrap=True)
