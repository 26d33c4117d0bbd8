"""Folders of images, written for the tests of tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def picture(colour: str, number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Noise around a colour; width 40, height 30."""
    width, height = size
    noise = np.random.default_rng(number).integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))


def write_folder(
    root: Path,
    classes: tuple[str, ...] = ("green", "red"),
    splits: tuple[str, ...] = ("train", "test"),
    per_class: int = 6,
    size: tuple[int, int] = (40, 30),
) -> Path:
    """A folder of that layout; every image of a split is different."""
    for place, split in enumerate(splits):
        for colour in classes:
            folder = root / split / colour
            folder.mkdir(parents=True)
            for number in range(per_class):
                picture(colour, 100 * place + number, size).save(folder / f"{number}.png")
    return root
