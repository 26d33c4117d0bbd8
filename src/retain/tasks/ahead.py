"""Squares of images, batch after batch; what must be read is read ahead by threads or processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retain.errors import FileError
from retain.tasks.crops import Crops, Square
from retain.tasks.images import THREADS, Pixels

# Batches that threads read ahead of the one in use; a process of its own reads as many.
AHEAD = 2


class Portion(NamedTuple):
    """What a batch is made of: images by number, and where to cut each; None is the middle."""

    numbers: list[int]
    places: list[Square] | None

    def only(self, chosen: Sequence[int]) -> Portion:
        """The images at these positions of the part."""
        places = None if self.places is None else [self.places[n] for n in chosen]
        return Portion([self.numbers[n] for n in chosen], places)


def squares(
    pixels: Pixels, crops: Crops, parts: Sequence[Portion], *, workers: int = 0
) -> Iterator[Tensor]:
    """The squares of each part in turn, uint8 [n, 3, size, size].

    What is in memory is cut here. The rest is read by `workers` processes, or by threads.

    Raises:
        FileError: a file cannot be read any more.
    """
    if all(pixels.in_memory(part.numbers) for part in parts):
        return (_cut(pixels, crops, part) for part in parts)
    if workers:
        return _by_processes(pixels, crops, parts, workers)
    return _by_threads(pixels, crops, parts)


def _cut(pixels: Pixels, crops: Crops, part: Portion) -> Tensor:
    return crops.cut([pixels.get(number) for number in part.numbers], part.places)


def _by_threads(pixels: Pixels, crops: Crops, parts: Sequence[Portion]) -> Iterator[Tensor]:
    with ThreadPoolExecutor(THREADS) as pool:
        coming = iter(parts)

        def begun(part: Portion) -> list[Future[Tensor]]:
            return [pool.submit(pixels.get, number) for number in part.numbers]

        ahead = deque(begun(part) for part in islice(coming, AHEAD))
        for part in parts:
            ready = ahead.popleft()
            ahead.extend(begun(following) for following in islice(coming, 1))
            yield crops.cut([image.result() for image in ready], part.places)


def _by_processes(
    pixels: Pixels, crops: Crops, parts: Sequence[Portion], workers: int
) -> Iterator[Tensor]:
    unread = [
        [n for n, number in enumerate(part.numbers) if not pixels.in_memory([number])]
        for part in parts
    ]
    asked = [part.only(missing) for part, missing in zip(parts, unread)]
    loader: DataLoader[Tensor] = DataLoader(
        _Reader(pixels.to_read_again(), crops),
        batch_size=None,
        sampler=asked,
        num_workers=workers,
        prefetch_factor=AHEAD,
        generator=torch.Generator(),  # its own, or it would draw from the global random state
    )
    for part, missing, read in zip(parts, unread, loader):
        if isinstance(read, str):
            raise FileError(read)
        if len(missing) == len(part.numbers):
            yield read
            continue
        batch = torch.empty(len(part.numbers), *read.shape[1:], dtype=read.dtype)
        here = sorted(set(range(len(part.numbers))) - set(missing))
        batch[missing] = read
        batch[here] = _cut(pixels, crops, part.only(here))
        yield batch


class _Reader(Dataset[Tensor]):
    """Squares by part, in a process of its own; a file that cannot be read gives its message."""

    def __init__(self, pixels: Pixels, crops: Crops) -> None:
        self.pixels, self.crops = pixels, crops

    def __getitem__(self, part: Portion) -> Tensor | str:  # type: ignore[override]
        try:
            return _cut(self.pixels, self.crops, part)
        except FileError as error:
            return str(error)
