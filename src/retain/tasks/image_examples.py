"""Examples that are images: random crops to train on, centre crops to measure on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from retain.errors import InputError
from retain.tasks.crops import Crops, normalised
from retain.tasks.images import THREADS, Pixels
from retain.tasks.task import Device, Minibatch

# Batches that are decoded ahead of the one in use.
AHEAD = 2


class ImageExamples:
    """The images `numbers` [n] of `pixels`, with their labels [n]."""

    deterministic = False

    def __init__(
        self, pixels: Pixels, labels: Tensor, crops: Crops, numbers: Tensor | None = None
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.crops = crops
        self.numbers = torch.arange(len(pixels)) if numbers is None else numbers

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
            InputError: `train` without a generator, which crops and flips are drawn from.
            FileError: a file that was there before cannot be read any more.
        """
        if train and shuffle is None:
            raise InputError(
                "Training batches of images are cropped and flipped at random: give a generator "
                "with shuffle=torch.Generator().manual_seed(…), or leave train=True out."
            )
        count = len(self)
        order = torch.arange(count) if shuffle is None else torch.randperm(count, generator=shuffle)
        parts = order.split(size)
        for indices, images in zip(parts, self._decoded(parts)):
            if train and shuffle is not None:
                crops = self.crops.random(images, shuffle)
            else:
                crops = self.crops.centred(images)
            labels = self.labels[indices]
            if device is not None:
                crops, labels = crops.to(device), labels.to(device)
            yield Minibatch(normalised(crops), labels, indices)

    def select(self, indices: Tensor) -> ImageExamples:
        """The examples at `indices`, in that order; the images are shared."""
        return ImageExamples(self.pixels, self.labels[indices], self.crops, self.numbers[indices])

    def _decoded(self, parts: tuple[Tensor, ...]) -> Iterator[list[Tensor]]:
        """The images of each part; threads decode those of the next parts meanwhile."""
        numbers = [self.numbers[part].tolist() for part in parts]
        if all(map(self.pixels.in_memory, numbers)):
            yield from ([self.pixels.get(number) for number in part] for part in numbers)
            return
        with ThreadPoolExecutor(THREADS) as pool:
            ahead = deque(
                [pool.submit(self.pixels.get, number) for number in part]
                for part in numbers[:AHEAD]
            )
            for coming in range(AHEAD, AHEAD + len(numbers)):
                ready = ahead.popleft()
                if coming < len(numbers):
                    ahead.append([pool.submit(self.pixels.get, n) for n in numbers[coming]])
                yield [image.result() for image in ready]
