"""`retain compare`: every method along its knob, forgetting against accuracy on new tasks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from retain.cli.flags import described_by, fields_of, given, out_option
from retain.cli.run import before_and_asked, config_of, show
from retain.cli.speaking import plainly
from retain.experiment import Config, Results
from retain.experiment import run as run_config
from retain.experiment.config import FIELDS
from retain.experiment.content import Content
from retain.experiment.sweep import swept
from retain.experiment.workers.crew import Workforce
from retain.methods import METHODS
from retain.report import summary
from retain.report.tables.equal_accuracy import compared, sentences
from retain.report.tables.outcome import drawn
from retain.report.variants import read

# What people do, what the paper proposes, and the bounds.
USUAL = (
    *("finetune", "joint", "mas", "ewc", "lwf", "l2-sp", "low-lr", "freeze", "replay", "kl"),
    *("lora", "wise-ft", "model-soup"),
)
BATCH_NORM = "frozen-for-all"  # no method shall be ahead because it alone freezes statistics
EXAMPLES = """

[bold]Examples[/]

retain compare --tasks digits --seeds 0,1,2 --out out

retain compare --tasks folders:flowers=PATH,birds=PATH --model resnet18 --weights default
--methods mas,replay,low-lr --strength mas=0.1:1:10 --sweep replay=0.01:0.1 --out out

retain compare --tasks digits --recipe train.py:finetune --methods mas,l2-sp,wise-ft --out out
"""


@plainly
@described_by(Workforce)
@described_by(
    Config,
    FIELDS,
    left_out={
        "methods": f"{', '.join(USUAL)}; FineTune is always included",
        "batch_norm": f"{BATCH_NORM}, unlike in retain run",
    },
)
def compare(
    *,
    out_folder: Annotated[Path, out_option("Folder for results and report.")],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue what is in --out; other options may be left out."),
    ] = False,
    **written: Any,
) -> None:
    """Compare how much methods forget at equal accuracy on new tasks, with the Pareto front."""
    by = given(Workforce, {field: written.pop(field) for field in fields_of(Workforce)}, ())
    Workforce(**by)
    usual = tuple(m for m in USUAL if m != "lora" or importlib.util.find_spec("peft"))
    before, asked = before_and_asked(out_folder, resume, written, usual)
    if before is None:
        asked.setdefault("methods", _able(usual, asked))
        asked.setdefault("batch_norm", BATCH_NORM)
    config = swept(config_of(before, asked))
    results = run_config(config, out=out_folder, resume=resume, **by)
    show(results, out_folder, more=_at_equal_accuracy)


def _at_equal_accuracy(results: Results | Content) -> Iterator[Any]:
    """The answer, after the table of every run: a table of a row a method, and the sentences.

    Where there is none, what the page begins with: that nothing finished, or that a single task
    leaves nothing to forget.
    """
    answered = False
    for sequence in read(results).sequences:
        grid = compared(sequence)
        if grid is not None:
            answered = True
            yield drawn(grid)
            yield sentences(sequence)
    if not answered:
        yield summary(results)


def _able(usual: tuple[str, ...], asked: dict[str, Any]) -> tuple[str, ...]:
    """The usual methods; with a recipe those that protect from outside."""
    return tuple(m for m in usual if "recipe" not in asked or METHODS[m].protects_from_outside)


compare.__doc__ = (compare.__doc__ or "") + EXAMPLES
