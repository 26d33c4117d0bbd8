"""`retain study`: the paper's experiments, from the data that are there or from stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retain import report, studies
from retain.cli.options import described_by, given, out_option
from retain.cli.run import written_page
from retain.cli.speaking import err, out, plainly
from retain.errors import ConfigError
from retain.experiment import Config
from retain.experiment.results import FILE
from retain.methods import METHODS
from retain.studies.folder import recorded
from retain.studies.study import SETTINGS, Asked

EXAMPLES = """

[bold]Examples[/]

retain study table2 --data digits --out table2

retain study table2 --data DATASETS --sets flowers,birds --device cuda --amp --out table2

retain study adaptation --data digits --adapt-to 0,1 --out adaptation

retain study table2 --resume --out table2
"""
# Where a run's option means something else, or has another default.
SAID = {
    "model": "in place of AlexNet, or of the stand-ins' small networks",
    "weights": "weights to start from: default (pre-trained), a file, or none",
    "seeds": "every method runs once per seed",
    "image_size": "side of the square that image files are cropped to",
    "strengths": "λ by method, as in retain run: mas=1,ewc=400, mas=0.1:1:10, auto",
    "forms": "of quadratic penalties: gradient (the paper's), proximal, adaptive",
}


@plainly
@described_by(Config, SETTINGS, defaults=False, said=SAID)
@described_by(Asked)
def study(
    *,
    name: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="table2, table3, sequence, memory or adaptation."),
    ],
    folder: Annotated[Path, out_option("Folder for results and report.")],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the study in --out; --data may be left out."),
    ] = False,
    **written: Any,
) -> None:
    """Run an experiment of the paper, and show it in the paper's own layout."""
    about_runs = {field: written.pop(field) for field in SETTINGS}
    asked = given(Asked, written, METHODS) | given(Config, about_runs, METHODS)
    planned = _planned(name, asked, folder if resume else None)
    carried = studies.carry_out(planned, folder, resume=resume)
    _show(folder, carried)


study.__doc__ = (study.__doc__ or "") + EXAMPLES


def _planned(name: str, asked: dict[str, Any], resumed: Path | None) -> studies.Study | None:
    """The study that is asked for; None where the one in the folder `resumed` is meant."""
    if "data" in asked:
        planned = studies.study_named(name, Asked(**asked))
        for what, why in planned.skipped.items():
            err.print(f"Not run: {what}. {why}", soft_wrap=True)
        return planned
    if resumed is None:
        raise ConfigError(
            "On which data? Give --data, the folder of the paper's data sets, or --data digits to "
            "see the study work on a stand-in."
        )
    if name not in studies.STUDIES:
        raise ConfigError(f"Unknown study {name!r}. Known: {', '.join(studies.STUDIES)}.")
    begun = recorded(resumed).name
    if begun != name:
        raise ConfigError(
            f"{resumed} holds the study {begun}, not {name}. Go on with it: "
            f"retain study {begun} --resume --out {resumed}"
        )
    return None


def _show(folder: Path, study: studies.Study) -> None:
    """Print the table and the sentence, write the report, and say where it is."""
    content = studies.gather(folder)
    page = written_page(content, folder)
    out.print(report.table(content))
    out.print(report.summary(content), soft_wrap=True)
    out.print(f"Results: {folder / FILE}\nReport:  {page}", soft_wrap=True)
    failed = [run for run in content.runs if run.status == "failed"]
    for run in failed:
        err.print(f"{run.method}, seed {run.seed} failed: {run.error}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)
