"""`retain datasets`: what each of the paper's data sets needs, and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from retain.cli.flags import path, several
from retain.cli.speaking import err, out, plainly
from retain.errors import ConfigError, RetainError
from retain.tasks.paper import PAPER_SETS, Counts, Inspection, download_set, inspect_data
from retain.tasks.paper.data_sets import paper_set

STATES = {
    "complete": "[green]complete[/]",
    "usable": "[yellow]usable, but[/]",
    "packed": "[yellow]packed[/]",
    "broken": "[red]broken[/]",
    "missing": "[red]missing[/]",
}
BAD = ("broken", "missing")


@plainly
def datasets(
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The folder where the data sets are or should go.",
            parser=path,
            metavar="PATH",
        ),
    ] = None,
    sets: Annotated[str | None, typer.Option(help="Only these, such as flowers,svhn.")] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Read every image, to find damaged ones.")
    ] = False,
    download: Annotated[
        bool,
        typer.Option("--download", help="First download what is missing, if torchvision has it."),
    ] = False,
) -> None:
    """See what each of the paper's eight data sets needs, and what is there.

    [bold]Examples[/]

    retain datasets

    retain datasets --data DATASETS --sets flowers,svhn --download
    """
    chosen = tuple(PAPER_SETS) if sets is None else several(sets, "--sets")
    for name in chosen:
        paper_set(name)
    if data is None:
        if download or images:
            raise ConfigError(
                "Which folder? Give --data, the folder where the data sets are or should go."
            )
        out.print(_needed(chosen), markup=True)
        out.print("Where the data are, retain datasets --data FOLDER says what is there.")
        return
    if download:
        _get(chosen, data)
    if not data.is_dir():
        raise ConfigError(f"{data} is not a folder. Give the one that holds the data sets.")
    found = inspect_data(data, chosen, decode=images)
    out.print(_found(found), markup=True)
    for one in found:
        _tell(one)


def _needed(chosen: tuple[str, ...]) -> Table:
    """What each data set should be, and how to get it."""
    table = Table(title="The paper's data sets", show_lines=True)
    for column in ("Name", "Data set", "Classes", "Train", "Test", "How to get it"):
        table.add_column(column, justify="right" if column in COUNTED else "left")
    for name in chosen:
        one = PAPER_SETS[name]
        how = f"--download, or {one.source}" if one.download else one.source
        counts = (one.expected.classes, one.expected.train, one.expected.test)
        table.add_row(name, one.title, *map(str, counts), escape(how))
    return table


COUNTED = ("Classes", "Train", "Test")


def _found(found: list[Inspection]) -> Table:
    """What there is of each, beside what is expected."""
    table = Table(title="Found / expected")
    for column in ("Name", "Data set", "State", *COUNTED):
        table.add_column(column, justify="right" if column in COUNTED else "left")
    for one in found:
        table.add_row(one.name, one.title, _state(one), *_counts(one.found, one.expected))
    return table


def _state(one: Inspection) -> str:
    """The state in words; of a set without binding counts also that they are others."""
    if one.state == "complete" and one.found != one.expected:
        return "[yellow]other counts[/]"
    return STATES[one.state]


def _counts(found: Counts | None, expected: Counts) -> list[str]:
    kinds = ("classes", "train", "test")
    return [
        f"{'–' if found is None else getattr(found, kind)} / {getattr(expected, kind)}"
        for kind in kinds
    ]


def _tell(one: Inspection) -> None:
    """Everything that is missing or wrong with a data set, and how to get it."""
    lines = [*one.problems, *one.remarks] if one.state != "missing" else list(one.problems)
    if one.state in BAD:
        lines.append(one.source)
    if not lines:
        return
    out.print(f"\n[bold]{one.name}[/]: {_state(one)}", markup=True)
    if one.folder is not None:
        out.print(f"  in {one.folder}", soft_wrap=True)
    for line in lines:
        out.print(f"  - {line}", soft_wrap=True)


def _get(chosen: tuple[str, ...], root: Path) -> None:
    """Have torchvision download what is missing; what it does not have is told below."""
    for one in inspect_data(root, chosen):
        if one.state != "missing" or PAPER_SETS[one.name].download is None:
            continue
        err.print(f"Downloading {one.title} into {root} …", soft_wrap=True)
        try:
            download_set(one.name, root)
        except RetainError as error:
            err.print(str(error), soft_wrap=True)
