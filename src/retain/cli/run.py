"""`retain run`: methods compared on anybody's tasks and model."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from retain import report
from retain.cli.flags import described_by, fields_of, given, out_option
from retain.cli.speaking import err, out, plainly
from retain.errors import ConfigError
from retain.experiment import Config, Results
from retain.experiment import run as run_config
from retain.experiment.config import FIELDS
from retain.experiment.content import FILE, Content
from retain.experiment.learner import described
from retain.experiment.run_folder import previous
from retain.experiment.workers.crew import Workforce
from retain.legible import visible
from retain.tasks.code_files import is_code
from retain.tasks.load import is_code_of_tasks

EXAMPLES = """

[bold]Examples[/]

retain run --tasks digits --model mlp --methods finetune,mas --seeds 0,1,2 --out out

retain run --tasks folders:flowers=PATH,birds=PATH --model resnet18 --weights default
--methods finetune,lwf,mas --strength mas=0.1:1:10 --optimizer sgd --out out

retain run --resume --workers 4 --out out
"""


@plainly
@described_by(Workforce)
@described_by(Config, FIELDS)
def run(
    *,
    out_folder: Annotated[Path, out_option("Folder for results and report.")],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out; other options may be left out."),
    ] = False,
    **written: Any,
) -> None:
    """Compare methods: accuracy, forgetting, memory and time, with a report in --out."""
    by = given(Workforce, {field: written.pop(field) for field in fields_of(Workforce)}, ())
    Workforce(**by)
    before, asked = before_and_asked(out_folder, resume, written, Config("digits").methods)
    config = config_of(before, asked)
    show(run_config(config, out=out_folder, resume=resume, **by), out_folder)


run.__doc__ = (run.__doc__ or "") + EXAMPLES


def before_and_asked(
    folder: Path, resume: bool, written: dict[str, Any], usual: tuple[str, ...]
) -> tuple[Config | None, dict[str, Any]]:
    """The config to go on with, if there is one, and what was written behind options.

    Args:
        folder: of the run.
        resume: whether a run is to be gone on with.
        written: by the names of the config's fields.
        usual: the methods, where none are named.
    """
    before = previous(folder).config if resume else None
    asked = written.get("methods")
    methods = asked.split(",") if asked else before.methods if before else usual
    return before, given(Config, written, methods)


def config_of(before: Config | None, asked: dict[str, Any]) -> Config:
    """What is asked for: a config of its own, or the one before with what is asked for now.

    Raises:
        ConfigError: no tasks are named, or code that only the folder names.
    """
    if before is not None:
        confirm_code([before.model], asked.get("model"))
        if is_code_of_tasks(before.tasks):
            confirm_code([before.tasks], asked.get("tasks"), what="tasks")
        if before.recipe is not None:
            confirm_code([before.recipe], asked.get("recipe"), what="recipe")
        return dataclasses.replace(before, **asked)
    if "tasks" not in asked:
        raise ConfigError("Which tasks? Give --tasks, such as --tasks digits.")
    return Config(**asked)


def confirm_code(models: Iterable[str], named: str | None, *, what: str = "model") -> None:
    """What a folder says is data: a file of Python that it names runs only if its user says so.

    Args:
        models: that the folder names.
        named: the model that the command line names.
        what: it is in place of a model, and the option that names it.

    Raises:
        ConfigError: it is not named there, and nobody can be asked, or says no.
    """
    for spec in dict.fromkeys(models):
        if not is_code(spec) or spec == named:
            continue
        path = os.path.realpath(Path(spec.rpartition(":")[0]).expanduser())
        question = f"The folder names the code file {path} for its {what}. Run it?"
        if not (sys.stdin.isatty() and typer.confirm(visible(question), err=True)):
            raise ConfigError(
                f"The folder names the code file {path} for its {what}, but code is not run merely "
                "because a folder names it. If the file is yours, name it on the command line, "
                f"too: --{what} {shlex.quote(spec)}"
            )


def show(
    results: Results | Content,
    folder: Path,
    *,
    sentence: bool = False,
    more: Callable[[Results | Content], Iterable[Any]] = lambda _: (),
) -> None:
    """Print the table, write the report, and say where it is; a failed run is an exit code of 1.

    Args:
        results: what was found out.
        folder: it is in.
        sentence: whether to sum it up below the table.
        more: what else to print below the table.

    A page that fails costs none of the results: they are written, and it is said what happened.
    """
    page: Path | str = "not made"
    runs = results.runs
    try:
        out.print(report.table(results))
        if sentence:
            out.print(report.summary(results), soft_wrap=True)
        for part in more(results):
            out.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)
        page = written_page(results, folder)
    except Exception as error:
        err.print(
            f"The report could not be made: {described(error)} The results are complete. Once the "
            f"problem is solved, make it with: retain report {shlex.quote(str(folder))}",
            soft_wrap=True,
        )
    out.print(f"Results: {folder / FILE}\nReport:  {page}", soft_wrap=True)
    failed = [run for run in runs if run.status == "failed"]
    for record in failed:
        err.print(f"{record.method}, seed {record.seed} failed: {record.error}", soft_wrap=True)
    if failed or isinstance(page, str):
        raise typer.Exit(1)


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
