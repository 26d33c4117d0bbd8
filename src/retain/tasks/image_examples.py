"""Examples that are images: random squares to train on, the middle ones to measure on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from retain.errors import InputError
from retain.tasks.ahead import Portion, squares
from retain.tasks.crops import Crops, normalised
from retain.tasks.images import Pixels
from retain.tasks.task import Device, Minibatch


class ImageExamples:
    """The images `numbers` [n] of `pixels`, with their labels [n].

    Args:
        pixels: the images.
        labels: their labels.
        crops: what is cut from them.
        augmented: cut at random places, and flip, with `train=True`; else from the middle, too.
        workers: processes that read what is not in memory; with 0 threads do.
        numbers: which of the images; None is all.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: Tensor,
        crops: Crops,
        *,
        augmented: bool = False,
        workers: int = 0,
        numbers: Tensor | None = None,
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.crops = crops
        self.augmented = augmented
        self.workers = workers
        self.numbers = torch.arange(len(pixels)) if numbers is None else numbers

    @property
    def deterministic(self) -> bool:
        """Whether training inputs are the same in every epoch."""
        return not self.augmented

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        size: int,
        *,
        shuffle: torch.Generator | None = None,
        train: bool = False,
        device: Device = None,
    ) -> Iterator[Minibatch]:
        """One epoch; see `Examples.batches`. Inputs are normalised, [n, 3, size, size].

        Raises:
            InputError: augmented training data without a generator to draw from.
            FileError: a file that was there before cannot be read any more.
        """
        if train and self.augmented and shuffle is None:
            raise InputError(
                "Training batches of images are cropped and flipped at random: give a generator "
                "with shuffle=torch.Generator().manual_seed(…), or leave train=True out."
            )
        count = len(self)
        order = torch.arange(count) if shuffle is None else torch.randperm(count, generator=shuffle)
        parts = order.split(size)
        for indices, cut in zip(parts, self._squares(parts, shuffle if train else None)):
            inputs, labels = cut, self.labels[indices]
            if device is not None:
                inputs, labels = inputs.to(device), labels.to(device)
            yield Minibatch(normalised(inputs), labels, indices)

    def select(self, indices: Tensor) -> ImageExamples:
        """The examples at `indices`, in that order; the images are shared."""
        return ImageExamples(
            self.pixels,
            self.labels[indices],
            self.crops,
            augmented=self.augmented,
            workers=self.workers,
            numbers=self.numbers[indices],
        )

    def _squares(
        self, parts: tuple[Tensor, ...], generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """The squares of each part. All is drawn at once: reading ahead changes no number."""
        numbers = [self.numbers[part].tolist() for part in parts]
        if generator is None or not self.augmented:
            asked = [Portion(part, None) for part in numbers]
        else:
            drawn = iter(self.crops.drawn(len(self), generator))
            asked = [Portion(part, [next(drawn) for _ in part]) for part in numbers]
        return squares(self.pixels, self.crops, asked, workers=self.workers)
