"""The report: tables, a sentence and a page with pictures, made from results.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from retain.report.variants import Source

__all__ = ["summary", "table", "write"]


def write(results: Source, out: Path | str | None = None) -> list[Path]:
    """The files that were written into `out`: report.html, then the figures as SVG and PNG.

    `results` is what a run returned, or a results.json, the folder that holds it, its content;
    `out` is a folder, by default the one that holds results.json.

    Raises:
        FileError: results.json is missing, truncated, from a newer schema or does not hold what
            its schema promises, or `out` cannot be written to.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    from retain.report.page import written

    return written(results, out)


def table(results: Source) -> Table:
    """A table for the terminal: final accuracy and forgetting, mean ± sd over seeds, per method.

    Raises:
        FileError: as `write`.
    """
    from retain.report.tables.outcome import in_terminal
    from retain.report.variants import read

    return in_terminal(read(results))


def summary(results: Source) -> str:
    """How much was forgotten, in plain language: "MAS forgot 0.6 points on average; …".

    Raises:
        FileError: as `write`.
    """
    from retain.report.text import summed_up
    from retain.report.variants import read

    return summed_up(read(results))
