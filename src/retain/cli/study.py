"""`retain study`: the paper's experiments, from the data that are there or from stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retain import studies
from retain.cli.flags import described_by, fields_of, flag_of, given, out_option
from retain.cli.run import confirm_code, show
from retain.cli.speaking import err, plainly
from retain.errors import ConfigError
from retain.experiment import Config
from retain.experiment.checks import unknown
from retain.experiment.workers.crew import Workforce
from retain.methods import METHODS
from retain.studies.study import SETTINGS, Asked
from retain.studies.study_folder import recorded
from retain.tasks.load import is_code_of_tasks

EXAMPLES = """

[bold]Examples[/]

retain study table2 --data digits --out table2

retain study table2 --data DATASETS --sets flowers,birds --device cuda --amp --out table2

retain study adaptation --data digits --adapt-to 0,1 --out adaptation

retain study table2 --resume --workers 4 --out table2
"""
# What stands in the protocol, where a study has another default than a run.
LEFT_OUT = {
    "model": "AlexNet, or the stand-ins' small networks",
    "weights": "default; none starts from random weights",
    "forms": "gradient, as in the paper",
}

# Options that say nothing without --data; a code file has to be named to be run.
ALONE = {
    name: flag_of(name, field)
    for name, field in {**fields_of(Config), **fields_of(Asked)}.items()
    if name not in ("data", "model", "loaders")
}


@plainly
@described_by(Workforce)
@described_by(Config, SETTINGS, defaults=False, left_out=LEFT_OUT)
@described_by(Asked)
def study(
    *,
    name: Annotated[
        str,
        typer.Argument(metavar="STUDY", help=f"one of {', '.join(studies.STUDIES)}."),
    ],
    folder: Annotated[Path, out_option("Folder for results and report.")],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the study in --out; --data may be left out."),
    ] = False,
    **written: Any,
) -> None:
    """Run an experiment of the paper, and show it in the paper's own layout."""
    by = given(Workforce, {field: written.pop(field) for field in fields_of(Workforce)}, ())
    Workforce(**by)
    about_runs = {field: written.pop(field) for field in SETTINGS}
    asked = given(Asked, written, METHODS) | given(Config, about_runs, METHODS)
    planned = _planned(name, asked, folder if resume else None)
    carried = studies.carry_out(planned, folder, resume=resume, **by)
    show(carried.content, folder, sentence=True)


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
        raise ConfigError(unknown("study", name, studies.STUDIES))
    begun = recorded(resumed)
    if begun.name != name:
        raise ConfigError(
            f"{resumed} holds the study {begun.name}, not {name}. Continue it with: retain study "
            f"{begun.name} --resume --out {resumed}"
        )
    others = [flag for field in asked if (flag := ALONE.get(field))]
    if others:
        raise ConfigError(
            f"{', '.join(others)} would be ignored. With --resume, either give --data and all "
            "options again, to be compared with those of the study, or give none of them."
        )
    models = {part.config.model for part in begun.parts}
    confirm_code(models, asked.get("model"))
    tasks = {part.config.tasks for part in begun.parts}
    confirm_code(filter(is_code_of_tasks, tasks), None, what="tasks")
    if "model" in asked and models != {asked["model"]}:
        raise ConfigError(
            f"The study in {resumed} was started with the model {', '.join(sorted(models))}, not "
            f"{asked['model']}."
        )
    return None
