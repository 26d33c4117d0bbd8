"""`retain demo`: see it work on real data within a minute."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from retain.cli.flags import out_option
from retain.cli.run import show
from retain.cli.speaking import out, plainly
from retain.experiment import Config, Results, run
from retain.experiment.content import FILE
from retain.experiment.run_folder import CHECKPOINTS, made
from retain.methods import PAPER

TITLE = "retain demo"
SEEDS = 3
THREE_LINES = """\
In your own training loop it takes three lines:

    memory = retain.MAS(model)                          # any trained model
    memory.observe(unlabelled_loader).consolidate()     # what matters, without labels
    memory.attach(optimizer)                            # every optimizer.step() is protected"""


def demonstration(seed: int = 0) -> Config:
    """Five two-class tasks of real handwritten digits, the paper's methods, seeds from `seed` on.

    A setting in which fine-tuning forgets tens of points: many large steps of SGD per task.
    """
    return Config(
        tasks="digits",
        model="mlp",
        methods=PAPER,
        seeds=tuple(range(seed, seed + SEEDS)),
        epochs=20,
        batch_size=16,
        lr=0.1,
        optimizer="sgd",
        title=TITLE,
    )


@plainly
def demo(
    folder: Annotated[Path, out_option("Folder for results, report and pictures.")] = Path(
        "retain-demo"
    ),
    seed: Annotated[int, typer.Option(help="The first of three seeds.")] = 0,
) -> None:
    """Five two-class tasks of real handwritten digits: what does each method forget?

    [bold]Example[/]

    retain demo --out demo
    """
    config = demonstration(seed)
    out.print(
        f"Five tasks of two digits each, one after another; {config.model} 64-100-100, a head per "
        f"task; SGD {config.lr:g} with momentum, batches of {config.batch_size}, {config.epochs} "
        f"epochs per task; {len(config.methods)} methods, seeds "
        f"{', '.join(map(str, config.seeds))}.",
        soft_wrap=True,
    )
    _make_way(folder)
    results = run(config, out=folder)
    show(results, folder)
    out.print(f"\n{THREE_LINES}", soft_wrap=True)


def _make_way(folder: Path) -> None:
    """An earlier demonstration may be replaced; any other run stays, and is refused later."""
    if (folder / FILE).is_file() and Results.read(folder).config.title == TITLE:
        with made(folder):
            (folder / FILE).unlink()
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
