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
from retain.legible import visible
from retain.starting import INTERRUPTED, loud_interrupt, quiet_interrupt

P = ParamSpec("P")
R = TypeVar("R")

BAD_INPUT = 2
LONGEST = 200  # characters of a path


class Plain(Console):
    """A console on which text is text: no markup, no emoji, and no commands to the terminal."""

    def __init__(self, **where: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **where)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print, with control characters made visible."""
        said = (visible(one) if isinstance(one, str) else one for one in objects)
        super().print(*said, **how)


out = Plain()
err = Plain(stderr=True)


def plainly(command: Callable[P, R]) -> Callable[P, R]:
    """The command, with errors raised on purpose told in words and an exit code of 2.

    Warnings are told in words as well, and each of them once; Ctrl-C is a sentence and the exit
    code of whoever is interrupted.
    """

    @wraps(command)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _heard_interrupts(), _warnings_in_words():
                return command(*args, **kwargs)
        except RetainError as error:
            _say_error(str(error))
            raise typer.Exit(BAD_INPUT) from None
        except OSError as error:  # of a file that was named; the system says which, and why
            _say_error(f"{str(error.filename)[:LONGEST]}: {error.strerror or error}.")
            raise typer.Exit(BAD_INPUT) from None
        except SystemExit as end:  # somebody else's code, such as a model file
            _say_error(f"Something ended the command from within (exit code {end.code}).")
            raise typer.Exit(BAD_INPUT) from None
        except (KeyboardInterrupt, typer.Abort) as stop:  # Abort: while a question was asked
            said = str(stop)
            if not said.startswith("Interrupted"):  # as somebody else's code raised it
                said = f"Interrupted. {said}".rstrip()
            err.print(said, soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception:
            raise
        except BaseException as end:  # of a kind of somebody's own
            _say_error(f"Something ended the command from within ({type(end).__name__}: {end}).")
            raise typer.Exit(BAD_INPUT) from None

    return told


@contextmanager
def _heard_interrupts() -> Iterator[None]:
    """Within it Ctrl-C is a KeyboardInterrupt, also where it ends the process before and after."""
    was_quiet = loud_interrupt()
    try:
        yield
    finally:
        if was_quiet:
            quiet_interrupt()


def _say_error(text: str) -> None:
    err.print("Error: ", end="", style="bold red")
    err.print(text, soft_wrap=True)


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
