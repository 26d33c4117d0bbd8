"""`retain repair`: give a model that has forgotten back what mattered."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from retain.cli.flags import out_option, path
from retain.cli.speaking import out, plainly
from retain.errors import FileError
from retain.files import write_weights
from retain.integrations.peft.saved import merged_from
from retain.memory.memory_file import other_weights, read_importance
from retain.models.weights import read_state
from retain.repair import repair as repaired
from retain.repair import warn_of_another_base


@plainly
def repair(
    base: Annotated[
        Path,
        typer.Argument(
            help="Weights before fine-tuning: safetensors or a torch file.",
            parser=path,
            metavar="BASE",
        ),
    ],
    tuned: Annotated[
        Path,
        typer.Argument(
            help="Weights after fine-tuning, or a folder with an adapter.",
            parser=path,
            metavar="TUNED",
        ),
    ],
    *,
    memory: Annotated[
        Path,
        typer.Option(
            help="A memory of the base model: a file from memory.save() or `retain importance`.",
            parser=path,
            metavar="PATH",
        ),
    ],
    file: Annotated[Path, out_option("The file to write, .safetensors.")],
    amount: Annotated[
        float,
        typer.Option(help="How far to go back: 0 keeps the tuned model, larger is nearer to base."),
    ] = 1.0,
) -> None:
    """Undo part of a fine-tuning, most where weights matter most. No training, no data.

    [bold]Example[/]

    retain repair before.pt after.pt --memory memory.safetensors --out mended.safetensors
    """
    _refuse_to_overwrite(file, (base, tuned, memory))
    _, importance = read_importance(memory)
    before = read_state(base)
    after = merged_from(before, tuned) if tuned.is_dir() else read_state(tuned)
    state = repaired(before, after, importance, amount=amount)
    warn_of_another_base(other_weights(memory, before))
    write_weights(file, state)
    out.print(f"Written to {file}", markup=False, soft_wrap=True)


def _refuse_to_overwrite(file: Path, read: Iterable[Path]) -> None:
    """What is read cannot be computed again from what would take its place."""
    for given in read:
        if file.exists() and given.exists() and file.samefile(given):
            raise FileError(
                f"--out is {given}, which is one of the inputs. Give another file, so that it is "
                "not lost."
            )
