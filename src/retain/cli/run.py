"""`retain run`: methods compared on anybody's tasks and model."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from retain import report
from retain.cli.options import described_by, given, out_option
from retain.cli.speaking import err, out, plainly
from retain.errors import ConfigError
from retain.experiment import Config, Results
from retain.experiment import run as run_config
from retain.experiment.config import FIELDS
from retain.experiment.folder import previous
from retain.experiment.results import FILE, Content

EXAMPLES = """

[bold]Examples[/]

retain run --tasks digits --model mlp --methods finetune,mas --seeds 0,1,2 --out out

retain run --tasks folders:flowers=PATH,birds=PATH --model resnet18 --weights default
--methods finetune,lwf,mas --strength mas=0.1:1:10 --optimizer sgd --out out

retain run --resume --out out
"""


@plainly
@described_by(Config, FIELDS)
def run(
    *,
    out_folder: Annotated[Path, out_option("Folder for results and report.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; options may be left out.")
    ] = False,
    **written: Any,
) -> None:
    """Compare methods: accuracy, forgetting, memory and time, with a report in --out."""
    before = previous(out_folder).config if resume else None
    usual = before.methods if before else Config("digits").methods
    asked = written.get("methods")
    config = _config(before, given(Config, written, asked.split(",") if asked else usual))
    show(run_config(config, out=out_folder, resume=resume), out_folder)


run.__doc__ = (run.__doc__ or "") + EXAMPLES


def _config(before: Config | None, asked: dict[str, Any]) -> Config:
    if before is not None:
        return dataclasses.replace(before, **asked)
    if "tasks" not in asked:
        raise ConfigError("Which tasks? Give --tasks, such as --tasks digits.")
    return Config(**asked)


def written_page(results: Results | Content, folder: Path) -> Path:
    """The page of the report, which is written; Ctrl-C meanwhile costs none of the results."""
    try:
        written = report.write(results, folder)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "Interrupted while the report was made. The results are complete; "
            f"make it with: retain report {shlex.quote(str(folder))}"
        ) from None
    return next(path for path in written if path.suffix == ".html")


def show(results: Results, folder: Path) -> None:
    """Print the table, write the report, and say where it is; a failed run is an exit code of 1."""
    page = written_page(results, folder)
    out.print(report.table(results))
    out.print(f"Results: {folder / FILE}\nReport:  {page}", soft_wrap=True)
    failed = [run for run in results.runs if run.status == "failed"]
    for record in failed:
        err.print(f"{record.method}, seed {record.seed} failed: {record.error}")
    if failed:
        raise typer.Exit(1)
