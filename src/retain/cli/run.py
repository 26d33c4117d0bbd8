"""`retain run`: methods compared on anybody's tasks and model."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from retain import report
from retain.cli.speaking import err, out, plainly
from retain.cli.values import names, settings, strengths, whole_numbers
from retain.errors import ConfigError
from retain.experiment import Config, Results
from retain.experiment import run as run_config
from retain.experiment.folder import previous
from retain.methods import METHODS

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
EXAMPLES = """

[bold]Examples[/]

retain run --tasks digits --model mlp --methods finetune,mas --seeds 0,1,2 --out out

retain run --tasks folders:flowers=PATH,birds=PATH --model resnet18 --weights default
--methods finetune,lwf,mas --strength mas=0.1:1:10 --optimizer sgd --out out

retain run --resume --out out
"""


def _default(name: str, what: str) -> str:
    value = DEFAULTS[name]
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f"{what} [dim]\\[default: {shown}][/]"


def _option(name: str, what: str) -> Any:
    return typer.Option(help=_default(name, what), show_default=False)


@plainly
def run(
    *,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for results and report.")],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="digits, permuted-digits, fashion-mnist=ROOT, mnist=ROOT, paper=ROOT, or "
            "folders:NAME=PATH,NAME=PATH (each with train/ and test/ of class folders)."
        ),
    ] = None,
    model: Annotated[
        str | None,
        _option("model", "mlp, cnn, a torchvision or timm name, or path/to/file.py:function."),
    ] = None,
    methods: Annotated[str | None, _option("methods", f"Of: {', '.join(METHODS)}.")] = None,
    strength: Annotated[
        list[str] | None,
        typer.Option(
            help="λ by method: mas=1,ewc=400; several for a sweep: mas=0.1:1:10; or auto, chosen "
            "on each new task without old data. Default: measured ones (docs/methods.md)."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            help="Of quadratic penalties: gradient, proximal, adaptive (default); several by comma."
        ),
    ] = None,
    importance_on: Annotated[
        str | None, _option("importance_on", "Data for Ω, never labels: train, test, train+test.")
    ] = None,
    importance_classes: Annotated[
        str | None,
        typer.Option(help="Compute Ω on these classes alone, in the tasks that have any of them."),
    ] = None,
    set_option: Annotated[
        list[str] | None,
        typer.Option("--set", help="METHOD.OPTION=VALUE, such as lwf.temperature=1."),
    ] = None,
    epochs: Annotated[int | None, _option("epochs", "Epochs per task.")] = None,
    batch_size: Annotated[int | None, _option("batch_size", "Samples per step.")] = None,
    lr: Annotated[float | None, _option("lr", "Learning rate.")] = None,
    lr_drop_every: Annotated[
        int | None, typer.Option(help="Multiply the learning rate by 0.1 every so many epochs.")
    ] = None,
    optimizer: Annotated[str | None, _option("optimizer", "sgd (momentum 0.9) or adam.")] = None,
    seeds: Annotated[str | None, _option("seeds", "Every method runs once per seed.")] = None,
    batch_norm: Annotated[
        str | None,
        _option("batch_norm", "Running statistics after the first task: frozen or moving."),
    ] = None,
    augmentation: Annotated[
        str | None,
        _option("augmentation", "Of image files, in training: none, or crop-flip."),
    ] = None,
    amp: Annotated[
        bool | None,
        typer.Option("--amp", help="Train and evaluate in mixed precision.", show_default=False),
    ] = None,
    device: Annotated[str | None, _option("device", "auto, cpu, cuda, mps.")] = None,
    workers: Annotated[
        int | None, _option("workers", "Processes that read images which do not fit in memory.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="File of pre-trained weights, or default.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side that image files are cropped to.")
    ] = None,
    classes_per_task: Annotated[int | None, typer.Option(help="Classes that a task gets.")] = None,
    class_order_seed: Annotated[
        int | None, typer.Option(help="Shuffle the classes before they are dealt out.")
    ] = None,
    samples_per_class: Annotated[
        int | None, typer.Option(help="At most so many examples of a class in each split.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="task-incremental or domain-incremental.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="What the report is called.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; options may be left out.")
    ] = False,
) -> None:
    """Compare methods: accuracy, forgetting, memory and time, with a report in --out."""
    simple = {
        "tasks": tasks, "model": model, "epochs": epochs, "batch_size": batch_size, "lr": lr,
        "lr_drop_every": lr_drop_every, "optimizer": optimizer, "batch_norm": batch_norm,
        "augmentation": augmentation, "amp": amp, "device": device, "workers": workers,
        "weights": weights, "image_size": image_size, "classes_per_task": classes_per_task,
        "class_order_seed": class_order_seed, "samples_per_class": samples_per_class,
        "scenario": scenario, "title": title,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in simple.items() if value is not None}
    lists = {
        "methods": methods, "forms": form, "importance_on": importance_on,
        "importance_classes": importance_classes,
    }  # fmt: skip
    given |= {name: names(value) for name, value in lists.items() if value is not None}
    if seeds is not None:
        given["seeds"] = whole_numbers(seeds, "--seeds")
    before = previous(out_folder).config if resume else None
    asked_methods = given.get("methods", before.methods if before else DEFAULTS["methods"])
    if strength:
        given["strengths"] = strengths(strength, asked_methods)
    if set_option:
        given["options"] = settings(set_option)
    config = _config(before, given)
    show(run_config(config, out=out_folder, resume=resume), out_folder)


run.__doc__ = (run.__doc__ or "") + EXAMPLES


def _config(before: Config | None, given: dict[str, Any]) -> Config:
    if before is not None:
        return dataclasses.replace(before, **given)
    if "tasks" not in given:
        raise ConfigError("Which tasks? Give --tasks, such as --tasks digits.")
    return Config(**given)


def written_page(folder: Path) -> Path:
    """The page of the report, which is written; Ctrl-C meanwhile costs none of the results."""
    try:
        written = report.write(folder)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "Interrupted while the report was made. The results are complete; "
            f"make it with: retain report {shlex.quote(str(folder))}"
        ) from None
    return next(path for path in written if path.suffix == ".html")


def show(results: Results, folder: Path) -> None:
    """Print the table, write the report, and say where it is; a failed run is an exit code of 1."""
    page = written_page(folder)
    out.print(report.table(folder))
    out.print(f"Results: {folder / 'results.json'}\nReport:  {page}", markup=False, soft_wrap=True)
    failed = [run for run in results.runs if run.status == "failed"]
    for record in failed:
        err.print(f"{record.method}, seed {record.seed} failed: {record.error}", markup=False)
    if failed:
        raise typer.Exit(1)
