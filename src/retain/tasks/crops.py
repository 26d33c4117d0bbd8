"""From images of any size to a batch: resize, crop, flip, normalise, as in the paper's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def random(self, images: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """Random squares, uint8 [n, 3, size, size], half of them flipped, of n images."""
        images = self._resized(images)
        # Three random numbers in [0, 1) per image: down, right, flip.
        drawn = torch.rand(len(images), 3, generator=generator, dtype=torch.float64)
        batch = torch.zeros(len(images), 3, self.size, self.size, dtype=torch.uint8)
        for square, image, (down, right, _) in zip(batch, images, drawn.tolist()):
            top = self._offset(image.shape[1], down)
            left = self._offset(image.shape[2], right)
            self._copy(square, image, top, left)
        flipped = drawn[:, 2] < 0.5
        batch[flipped] = batch[flipped].flip(-1)
        return batch

    def centred(self, images: Sequence[Tensor]) -> Tensor:
        """The squares in the middle, uint8 [n, 3, size, size], of n images."""
        images = self._resized(images)
        batch = torch.zeros(len(images), 3, self.size, self.size, dtype=torch.uint8)
        for square, image in zip(batch, images):
            top, left = ((length - self.size) // 2 for length in image.shape[1:])
            self._copy(square, image, top, left)
        return batch

    def _offset(self, length: int, drawn: float) -> int:
        """A place between −border and the last one, for a number drawn from [0, 1)."""
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
