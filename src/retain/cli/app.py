"""All commands together."""

from __future__ import annotations

import typer

from retain.cli.compare import compare
from retain.cli.datasets import datasets
from retain.cli.demo import demo
from retain.cli.importance import importance
from retain.cli.inspect import inspect
from retain.cli.repair import repair
from retain.cli.report import report
from retain.cli.run import run
from retain.cli.study import study

app = typer.Typer(
    help="Teach a trained network something new without losing what it can do.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, run, compare, study, datasets, report, importance, inspect, repair):
    app.command()(command)
