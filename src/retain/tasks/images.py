"""Image files: decoded in threads, kept as bytes in memory while they fit, else read again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from retain.errors import FileError
from retain.extras import needs

# Called now and then while files are read, with what is read, how many are done, and of how many.
Progress = Callable[[str, int, int], None]
Box = tuple[int, int, int, int]
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, or the part of it inside `box` (left, upper, right, lower, in pixels)."""

    path: Path
    box: Box | None = None


@dataclass
class MemoryBudget:
    """Bytes that may still be spent on decoded images."""

    left: int

    def claim(self, size: int) -> bool:
        """Whether `size` bytes were left; they are spent now."""
        if size > self.left:
            return False
        self.left -= size
        return True


class Pixels(Protocol):
    """Decoded images by number: uint8 [3, h, w], of any height and width."""

    def __len__(self) -> int: ...

    def in_memory(self, numbers: Iterable[int]) -> bool:
        """Whether these images need no reading."""

    def get(self, number: int) -> Tensor:
        """The image of that number."""

    def to_read_again(self) -> Pixels:
        """The same images without what memory holds of files: cheap to send to a process."""


@dataclass(frozen=True)
class PixelsInMemory:
    """Images of one size as one tensor, uint8 [n, 3, h, w]."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def in_memory(self, _numbers: Iterable[int]) -> bool:
        """True."""
        return True

    def get(self, number: int) -> Tensor:
        """The image of that number, uint8 [3, h, w]."""
        return self.images[number]

    def to_read_again(self) -> PixelsInMemory:
        """The images as they are: there are no files."""
        return self


@dataclass(frozen=True)
class PixelsOfFiles:
    """Images of files; `kept` holds those that memory was left for."""

    files: Sequence[ImageFile]
    side: int
    kept: Sequence[Tensor | None]

    def __len__(self) -> int:
        return len(self.files)

    def in_memory(self, numbers: Iterable[int]) -> bool:
        """Whether all of these are kept."""
        return all(self.kept[number] is not None for number in numbers)

    def get(self, number: int) -> Tensor:
        """The image of that number, uint8 [3, h, w].

        Raises:
            FileError: it could be read before and cannot now.
        """
        kept = self.kept[number]
        if kept is not None:
            return kept
        decoded = decode(self.files[number], self.side)
        if decoded.failure:
            raise FileError(f"{self.files[number].path} cannot be read any more: {decoded.failure}")
        return decoded.pixels

    def to_read_again(self) -> PixelsOfFiles:
        """The files, none of them kept."""
        return PixelsOfFiles(self.files, self.side, [None] * len(self.files))


@dataclass(frozen=True)
class Decoded:
    """An image uint8 [3, h, w] and the mode it was stored in, or why it could not be read."""

    pixels: Tensor
    mode: str
    failure: str = ""


def decode(file: ImageFile, side: int) -> Decoded:
    """The image in RGB; its shorter side is reduced to `side` (bilinear) if it is longer."""
    Image = needs("PIL.Image")
    try:
        with Image.open(file.path) as image:
            mode = image.mode
            image.load()
            pixels = _rgb(image if file.box is None else _cut(image, file.box), side)
    # Pillow raises nearly anything on a damaged file: OSError, SyntaxError, struct.error …
    except Exception as error:
        return Decoded(torch.empty(0), "", f"{type(error).__name__}: {error}")
    return Decoded(pixels, mode)


def decode_all(
    files: Sequence[ImageFile], side: int, progress: Callable[[int], None]
) -> Iterator[Decoded]:
    """Each file decoded, in order, by several threads; `progress` hears how many are done."""
    with ThreadPoolExecutor(THREADS) as pool:
        decoded = pool.map(lambda file: decode(file, side), files)
        for done, image in enumerate(decoded, start=1):
            progress(done)
            yield image


def _cut(image: Any, box: Box) -> Any:
    left, upper, right, lower = box
    width, height = image.size
    inside = (max(0, left), max(0, upper), min(width, right), min(height, lower))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise ValueError(f"the box {box} lies outside of the image of {width}×{height}")
    return image.crop(inside)


def _rgb(image: Any, side: int) -> Tensor:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits to white; the upper byte is the picture.
        image = needs("PIL.Image").fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"pixels of mode {image.mode} have no value that means white")
    image = image.convert("RGB")
    width, height = image.size
    if min(width, height) > side:
        ratio = side / min(width, height)
        size = (max(side, round(width * ratio)), max(side, round(height * ratio)))
        image = image.resize(size, needs("PIL.Image").Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
