"""`retain report`: the page again, from results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retain import report as reporting
from retain import studies
from retain.cli.flags import path
from retain.cli.speaking import out, plainly


@plainly
def report(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The folder that `retain run` or `retain study` wrote.",
            parser=path,
            metavar="FOLDER",
        ),
    ],
) -> None:
    """Make report.html and its figures again from results.json.

    [bold]Example[/]

    retain report out
    """
    results = studies.gather(folder) if studies.is_study(folder) else folder
    place = folder if folder.is_dir() else folder.parent
    written = reporting.write(results, place)
    out.print(reporting.table(results))
    for one in written:
        out.print(str(one), soft_wrap=True)
