"""From images of any size to a batch: resize, crop, flip, normalise, as in the paper's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# The paper's: resize to 256, crop 224.
PAPER_SIZE = 224
RESIZE = 256 / 224
# Up to this size images are used whole, and trained on with shifts into a border, as for CIFAR.
SMALL = 64
SHIFT = 1 / 8
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Square(NamedTuple):
    """Where a square is cut from an image, in numbers from [0, 1), and whether it is flipped."""

    down: float
    right: float
    flip: float


@dataclass(frozen=True)
class Crops:
    """Squares of `size` pixels cut from images.

    Training: the shorter side resized to 8/7 of `size`, a random square, a random flip. For
    evaluation: the same, and the square in the middle. Where `size` is 64 or less: the shorter
    side resized to `size`, squares shifted by up to an eighth of it into a black border.
    """

    size: int = PAPER_SIZE

    @property
    def side(self) -> int:
        """The shorter side of an image before a square is cut from it."""
        return self.size if self.size <= SMALL else round(self.size * RESIZE)

    @property
    def border(self) -> int:
        """Pixels by which a random square may reach out of the image."""
        return round(self.size * SHIFT) if self.size <= SMALL else 0

    def drawn(self, count: int, generator: torch.Generator) -> list[Square]:
        """Random places of squares in `count` images, whatever the size of those."""
        numbers = torch.rand(count, 3, generator=generator, dtype=torch.float64)
        return [Square(*three) for three in numbers.tolist()]

    def cut(self, images: Sequence[Tensor], places: Sequence[Square] | None) -> Tensor:
        """Squares at `places`, or in the middle, uint8 [n, 3, size, size], of n images."""
        batch = torch.zeros(len(images), 3, self.size, self.size, dtype=torch.uint8)
        if places is None:
            return self._centred(batch, self._resized(images))
        for square, image, place in zip(batch, self._resized(images), places):
            top = self._offset(image.shape[1], place.down)
            left = self._offset(image.shape[2], place.right)
            self._copy(square, image, top, left)
        flipped = torch.tensor([place.flip < 0.5 for place in places], dtype=torch.bool)
        batch[flipped] = batch[flipped].flip(-1)
        return batch

    def _centred(self, batch: Tensor, images: Sequence[Tensor]) -> Tensor:
        for square, image in zip(batch, images):
            top, left = ((length - self.size) // 2 for length in image.shape[1:])
            self._copy(square, image, top, left)
        return batch

    def _offset(self, length: int, drawn: float) -> int:
        """An offset between −border and the last one, for a number drawn from [0, 1)."""
        places = length - self.size + 2 * self.border + 1
        return int(drawn * places) - self.border

    def _copy(self, square: Tensor, image: Tensor, top: int, left: int) -> None:
        """What lies inside of the image goes to its place in the square."""
        down, right = max(0, -top), max(0, -left)
        inside = image[:, max(0, top) : top + self.size, max(0, left) : left + self.size]
        square[:, down : down + inside.shape[1], right : right + inside.shape[2]] = inside

    def _resized(self, images: Sequence[Tensor]) -> Sequence[Tensor]:
        """The images with a shorter side of `side`, enlarged at once if they are of one size."""
        if all(min(image.shape[1:]) == self.side for image in images):
            return images
        if len({image.shape for image in images}) == 1:
            return self._resize(torch.stack(list(images))).unbind()
        return [self._resize(image.unsqueeze(0))[0] for image in images]

    def _resize(self, batch: Tensor) -> Tensor:
        height, width = batch.shape[2:]
        ratio = self.side / min(height, width)
        size = (max(self.side, round(height * ratio)), max(self.side, round(width * ratio)))
        return interpolate(batch, size=size, mode="bilinear", antialias=ratio < 1)


def normalised(batch: Tensor) -> Tensor:
    """Bytes [n, 3, h, w] as numbers with ImageNet's mean and standard deviation taken out."""
    mean, std = (
        torch.tensor(numbers, device=batch.device).view(3, 1, 1)
        for numbers in (IMAGENET_MEAN, IMAGENET_STD)
    )
    # (x / 255 − μ) / σ, in two passes over the batch
    return batch.float().mul_(1 / (255 * std)).sub_(mean / std)
