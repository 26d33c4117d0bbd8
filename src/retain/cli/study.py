"""`retain study`: the paper's experiments, from the data that are there or from stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retain import report, studies
from retain.cli.run import written_page
from retain.cli.speaking import err, out, plainly
from retain.cli.values import names, strengths, whole_numbers
from retain.errors import ConfigError
from retain.experiment.results import FILE
from retain.methods import METHODS
from retain.report.reading import read
from retain.studies.folder import recorded

EXAMPLES = """

[bold]Examples[/]

retain study table2 --data digits --out table2

retain study table2 --data DATASETS --sets flowers,birds --device cuda --amp --out table2

retain study adaptation --data digits --adapt-to 0,1 --out adaptation

retain study table2 --resume --out table2
"""


@plainly
def study(
    *,
    name: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="table2, table3, sequence, memory or adaptation."),
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for results and report.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="The folder of the paper's data sets (retain datasets says what they need), or "
            "stand-ins: digits, folders:NAME=PATH,NAME=PATH."
        ),
    ] = None,
    sets: Annotated[
        str | None, typer.Option(help="Only these data sets, such as flowers,birds,scenes.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="In place of AlexNet, or of the stand-ins' small networks.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Weights to start from: default (pre-trained), a file, or none."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Every method runs once per seed.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs per task.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd (momentum 0.9) or adam.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side that image files are cropped to.")
    ] = None,
    samples_per_class: Annotated[
        int | None, typer.Option(help="At most so many images of a class in each split.")
    ] = None,
    strength: Annotated[
        list[str] | None,
        typer.Option(help="λ by method, as in retain run: mas=1,ewc=400, mas=0.1:1:10, auto."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(help="Of quadratic penalties: gradient (the paper's), proximal, adaptive."),
    ] = None,
    adapt_to: Annotated[
        str | None,
        typer.Option(help="adaptation: the classes of the first task that matter, by comma."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A reduced version, marked as such on every page.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Train in mixed precision.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the study in --out; --data may be left out."),
    ] = False,
) -> None:
    """Run an experiment of the paper, and show it in the paper's own layout."""
    asked = None
    if data is not None:
        asked = studies.Asked(
            data=data,
            sets=names(sets or ""),
            model=model,
            weights=weights,
            seeds=whole_numbers(seeds, "--seeds") if seeds is not None else (),
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            optimizer=optimizer,
            image_size=image_size,
            samples_per_class=samples_per_class,
            strengths=strengths(strength or [], METHODS),
            forms=names(form or ""),
            adapt_to=names(adapt_to or ""),
            quick=quick,
            device=device,
            amp=amp,
            workers=workers,
        )
    planned = _planned(name, asked, folder if resume else None)
    carried = studies.carry_out(planned, folder, resume=resume)
    _show(folder, carried)


study.__doc__ = (study.__doc__ or "") + EXAMPLES


def _planned(name: str, asked: studies.Asked | None, resumed: Path | None) -> studies.Study | None:
    """The study that is asked for; None where the one in the folder `resumed` is meant."""
    if asked is not None:
        planned = studies.study_named(name, asked)
        for what, why in planned.skipped.items():
            err.print(f"Not run: {what}. {why}", markup=False, soft_wrap=True)
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
    page = written_page(folder)
    out.print(report.table(folder))
    out.print(report.summary(folder), markup=False, soft_wrap=True)
    out.print(f"Results: {folder / FILE}\nReport:  {page}", markup=False, soft_wrap=True)
    failed = [run for run in read(folder).runs if run.status == "failed"]
    for run in failed:
        err.print(f"{run.method}, seed {run.seed} failed: {run.error}", markup=False)
    if failed:
        raise typer.Exit(1)
