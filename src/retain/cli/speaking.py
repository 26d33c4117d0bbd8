"""How commands talk: results on standard output, errors as one line without a traceback."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console

from retain.errors import RetainError

P = ParamSpec("P")
R = TypeVar("R")

BAD_INPUT = 2
INTERRUPTED = 130  # what a shell expects after Ctrl-C

# What is printed is text: nothing in a name is taken for markup or an emoji.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def plainly(command: Callable[P, R]) -> Callable[P, R]:
    """The command, with errors raised on purpose told in words and an exit code of 2.

    Warnings are told in words as well, and each of them once.
    """

    @wraps(command)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _warnings_in_words():
                return command(*args, **kwargs)
        except RetainError as error:
            err.print("Error: ", end="", style="bold red")
            err.print(str(error), soft_wrap=True)
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt as stop:
            err.print(str(stop) or "Interrupted.", soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None

    return told


@contextmanager
def _warnings_in_words() -> Iterator[None]:
    """Within it warnings are lines on standard error, without the place in the code."""
    told: set[str] = set()

    def show(message: Warning | str, *_where: Any, **_more: Any) -> None:
        text = str(message)
        if text not in told:
            told.add(text)
            err.print("Note: ", end="", style="yellow")
            err.print(text, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
