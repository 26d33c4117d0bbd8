"""`retain importance`: Ω of one's own model from a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from retain import MAS, LocalMAS, atomic
from retain.cli.flags import described_by, given, out_option, path
from retain.cli.speaking import out, plainly
from retain.errors import ConfigError, FileError
from retain.experiment import Config
from retain.experiment.machine import chosen_device, refuse_too_large
from retain.models.build import model_from_file
from retain.models.named import named_model
from retain.models.weights import load_weights
from retain.tasks import ImageExamples
from retain.tasks.code_files import is_code
from retain.tasks.crops import PAPER_SIZE, Crops
from retain.tasks.images import ImageFile, PixelsOfFiles
from retain.tasks.options import LARGEST

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
EXAMPLES = """

[bold]Examples[/]

retain importance mymodel.py:trained --data photos --out omega.safetensors

retain importance resnet18 --weights default --data photos --out omega.safetensors
"""


# Options of a run that apply, and those of them that are others here.
SETTINGS = ("weights", "image_size", "batch_size", "device")
DEFAULTS: dict[str, Any] = {"image_size": PAPER_SIZE, "batch_size": 32}


@plainly
@described_by(Config, SETTINGS, left_out={name: str(value) for name, value in DEFAULTS.items()})
def importance(
    *,
    model: Annotated[
        str, typer.Argument(help="path/to/file.py:function, or a torchvision or timm name.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of images, without labels; subfolders are searched, too.",
            parser=path,
            metavar="PATH",
        ),
    ],
    file: Annotated[Path, out_option("The file to write, .safetensors.")],
    max_samples: Annotated[
        int | None, typer.Option(help="Stop after this many images.", min=1, max=LARGEST)
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Use the local rule, l-MAS: forward passes only.")
    ] = False,
    **written: Any,
) -> None:
    """Compute how much each weight of a model matters on a folder of images, without labels."""
    asked = Config("digits", **(DEFAULTS | given(Config, written, ())))  # no tasks are trained on
    side = asked.image_size or PAPER_SIZE
    refuse_too_large(side, asked.batch_size)
    if asked.weights is not None and not asked.weights.strip():
        raise ConfigError("--weights is empty; give a file, or default.")
    _refuse_unwritable(file)
    place = chosen_device(asked.device)
    examples = _images(data, side)
    network = _model(model, asked.weights).to(place)
    memory = (LocalMAS if local else MAS)(network)
    memory.observe(examples.batches(asked.batch_size, device=place), max_samples=max_samples)
    memory.observed.save(file)
    out.print(memory.observed.summary())
    out.print(f"Written to {file}", soft_wrap=True)


importance.__doc__ = (importance.__doc__ or "") + EXAMPLES


def _refuse_unwritable(file: Path) -> None:
    """Find out now, and not after hours of computing."""
    try:
        atomic.try_writing(file)
    except FileError as error:
        raise FileError(f"{error} Nothing was computed; choose another --out.") from None


def _model(spec: str, weights: str | None) -> nn.Module:
    default = weights == "default"
    if is_code(spec):
        if default:
            raise ConfigError(f"There are no default weights of {spec}; give a file.")
        network = model_from_file(spec)
    else:
        network, _notes = named_model(spec, default_weights=default)
    if weights is not None and not default:
        load_weights(network, Path(weights))
    return network


def _images(folder: Path, size: int) -> ImageExamples:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder. Give a folder of images with --data.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ConfigError(
            f"{folder} holds no image; looked for {', '.join(sorted(SUFFIXES))} in it and below."
        )
    crops = Crops(size)
    pixels = PixelsOfFiles([ImageFile(path) for path in found], crops.side, [None] * len(found))
    return ImageExamples(pixels, torch.zeros(len(found), dtype=torch.int64), crops)
