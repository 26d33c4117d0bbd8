"""`retain repair`: give a model that has forgotten back what mattered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retain.cli.speaking import out, plainly
from retain.files import write_weights
from retain.memory.memory_file import read_importance
from retain.models.weights import read_state
from retain.repair import repair as repaired


@plainly
def repair(
    base: Annotated[Path, typer.Argument(help="Weights from before: safetensors or a torch file.")],
    tuned: Annotated[Path, typer.Argument(help="Weights after training that forgot.")],
    *,
    memory: Annotated[
        Path, typer.Option(help="What a memory of the base model saved, or `retain importance`.")
    ],
    file: Annotated[Path, typer.Option("--out", help="The file to write, .safetensors.")],
    amount: Annotated[
        float, typer.Option(help="How far to go back: 0 is the tuned model, larger is nearer base.")
    ] = 1.0,
) -> None:
    """Shrink every weight's change by how much the weight mattered. No training, no data.

    [bold]Example[/]

    retain repair before.pt after.pt --memory memory.safetensors --out mended.safetensors
    """
    _, importance = read_importance(memory)
    state = repaired(read_state(base), read_state(tuned), importance, amount=amount)
    write_weights(file, state)
    out.print(f"Written to {file}", markup=False, soft_wrap=True)
