"""Reading the images of a task: what cannot be read is left out, named and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from retain.errors import FileError
from retain.tasks.crops import Crops
from retain.tasks.image_examples import ImageExamples
from retain.tasks.images import (
    ImageFile,
    MemoryBudget,
    Pixels,
    PixelsInMemory,
    PixelsOfFiles,
    Progress,
    decode_all,
)
from retain.tasks.options import TaskOptions
from retain.tasks.splits import few_per_class

NAMED = 10

# Files, or bytes [n, 3, h, w] that are in memory already.
Images = Sequence[ImageFile] | torch.Tensor


@dataclass
class Reading:
    """The reading of one data set, split by split.

    Attributes:
        name: of the data set, for messages.
        root: its folder; names in messages are relative to it.
        classes: their names, in the order of the labels.
        crops: what is cut from an image.
        budget: the memory that is left, shared with other data sets.
        options: how many per class, how many may be unreadable.
        progress: who hears how far it got.
    """

    name: str
    root: Path
    classes: Sequence[str]
    crops: Crops
    budget: MemoryBudget
    options: TaskOptions
    progress: Progress | None = None
    found: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def split(self, name: str, images: Images, labels: Sequence[int]) -> ImageExamples:
        """The examples of one split, at most `samples_per_class` of each class.

        Raises:
            FileError: there is nothing in it that can be read, or, in train, nothing of a class.
        """
        every = torch.tensor(labels, dtype=torch.int64)
        few = few_per_class(every, self.options.samples_per_class, seed=self.options.seed)
        if isinstance(images, torch.Tensor):
            return self._examples(name, PixelsInMemory(images[few]), every[few])
        chosen = [images[number] for number in few.tolist()]
        readable, kept = self._read(f"{self.name} {name}", chosen)
        split_labels = every[few][torch.tensor(readable, dtype=torch.int64)]
        self._nothing_lost(name, set(split_labels.tolist()))
        pixels = PixelsOfFiles([chosen[n] for n in readable], self.crops.side, kept)
        return self._examples(name, pixels, split_labels)

    def _examples(self, split: str, pixels: Pixels, labels: torch.Tensor) -> ImageExamples:
        augmented = split == "train" and self.options.augmentation == "crop-flip"
        loaders = self.options.loaders
        return ImageExamples(pixels, labels, self.crops, augmented=augmented, workers=loaders)

    def notes(self) -> tuple[str, ...]:
        """What is worth knowing about what was read.

        Raises:
            FileError: more images than allowed could not be read.
        """
        notes = []
        if self.lost > self.options.corrupt_fraction * self.found:
            raise FileError(
                f"{self._unreadable()} That is more than the {self.options.corrupt_fraction:.0%} "
                "that may be left out (corrupt_fraction). Repair or remove them."
            )
        if self.lost:
            notes.append(f"{self._unreadable()} They are left out.")
        other = {mode: count for mode, count in self.modes.items() if mode != "RGB"}
        if other:
            counts = ", ".join(f"{count} {mode}" for mode, count in sorted(other.items()))
            notes.append(
                f"{self.name}: {sum(other.values())} of {sum(self.modes.values())} images are not "
                f"RGB ({counts}); they are converted."
            )
        return tuple(notes)

    def _nothing_lost(self, split: str, present: set[int]) -> None:
        lost = [name for label, name in enumerate(self.classes) if label not in present]
        if lost and (split == "train" or not present):
            raise FileError(
                f"No image of {', '.join(lost[:NAMED])} in the {split} split of {self.name} could "
                f"be read. {self._unreadable()}"
            )

    def _read(
        self, what: str, files: Sequence[ImageFile]
    ) -> tuple[list[int], list[torch.Tensor | None]]:
        """(numbers of the readable files, their pixels or None where memory is used up)."""
        readable: list[int] = []
        kept: list[torch.Tensor | None] = []

        def heard(done: int) -> None:
            if self.progress is not None:
                self.progress(what, done, len(files))

        self.found += len(files)
        for number, decoded in enumerate(decode_all(files, self.crops.side, heard)):
            if decoded.failure:
                self.lost += 1
                self.unreadable[self._shown(files[number].path)] = decoded.failure
                continue
            self.modes[decoded.mode] += 1
            readable.append(number)
            kept.append(decoded.pixels if self.budget.claim(decoded.pixels.nbytes) else None)
        return readable, kept

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def _unreadable(self) -> str:
        named = [f"{name} ({why})" for name, why in list(self.unreadable.items())[:NAMED]]
        more = len(self.unreadable) - len(named)
        return (
            f"{self.name}: {self.lost} of {self.found} images in {self.root} could not "
            f"be read: {', '.join(named)}{f' and {more} more' if more > 0 else ''}."
        )
