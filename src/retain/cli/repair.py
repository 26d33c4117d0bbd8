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
from retain.models.checkpoint_folder import is_checkpoint
from retain.models.weights import read_state
from retain.repair import repair as repaired
from retain.repair import warn_of_another_base

TORCH = (".pt", ".pth", ".bin", ".ckpt")  # names of files of torch


@plainly
def repair(
    base: Annotated[
        Path,
        typer.Argument(
            help="Weights before fine-tuning: safetensors, a torch file, or a folder that "
            "save_pretrained() wrote.",
            parser=path,
            metavar="BASE",
        ),
    ],
    tuned: Annotated[
        Path,
        typer.Argument(
            help="Weights after fine-tuning, or a folder with an adapter alone.",
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
    if file.suffix in TORCH:
        raise FileError(
            f"--out is {file}, and what is written is safetensors, which torch.load() does not "
            f"read. Give a name such as {file.with_suffix('.safetensors')}."
        )
    _refuse_to_overwrite(file, (base, tuned, memory))
    _, importance = read_importance(memory)
    before = read_state(base)
    adapter = tuned.is_dir() and not is_checkpoint(tuned)
    after = merged_from(before, tuned) if adapter else read_state(tuned)
    state = repaired(before, after, importance, amount=amount)
    warn_of_another_base(other_weights(memory, before))
    write_weights(file, state)
    out.print(f"Written to {file}", markup=False, soft_wrap=True)


def _refuse_to_overwrite(file: Path, read: Iterable[Path]) -> None:
    """What is read cannot be computed again from what would take its place."""
    for given in read:
        holds = given if given.is_dir() else given.parent if is_checkpoint(given) else None
        inside = holds is not None and file.resolve().parent == holds.resolve()
        if file.exists() and given.exists() and (inside or file.samefile(given)):
            raise FileError(
                f"--out is {given}, which is one of the inputs. Give another file, so that it is "
                "not lost."
            )
