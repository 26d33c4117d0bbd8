"""What the eight data sets have in common: a listing of images, where it lies, what to expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from retain.tasks.reading import Images


@dataclass(frozen=True)
class Listing:
    """The images of one official split (files, or bytes [n, 3, h, w]) and their labels."""

    images: Images
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def absent(self) -> list[Path]:
        """Files that are listed and not there."""
        if isinstance(self.images, Tensor):
            return []
        return sorted({image.path for image in self.images if not image.path.is_file()})


@dataclass(frozen=True)
class Official:
    """A data set as its files list it.

    Attributes:
        classes: the names that the labels stand for.
        train: what to learn from.
        test: what to measure on, whole.
        remarks: what was left out while reading, a sentence each.
    """

    classes: tuple[str, ...]
    train: Listing
    test: Listing
    remarks: tuple[str, ...] = ()

    def of_present_classes(self) -> Official:
        """The same with only the classes that occur in train, numbered anew in their order."""
        present = sorted(set(self.train.labels))
        if len(present) == len(self.classes):
            return self
        place = {label: number for number, label in enumerate(present)}
        train, test = (_renumbered(listing, place) for listing in (self.train, self.test))
        return Official(tuple(self.classes[n] for n in present), train, test, self.remarks)


@dataclass(frozen=True)
class Counts:
    """How many classes, and images to learn from and to measure on."""

    classes: int
    train: int
    test: int


@dataclass(frozen=True)
class Archive:
    """A file as it is downloaded.

    Attributes:
        name: of the file.
        into: the folder below the root that it is unpacked into.
        holds: what is then in that folder.
    """

    name: str
    into: str
    holds: str


@dataclass(frozen=True)
class PaperSet:
    """One of the eight data sets of the paper.

    Attributes:
        name: short, for specifications.
        title: its full name.
        places: folders below the root where it may lie.
        images: what holds its images in such a folder.
        archives: what it is downloaded as; unpacked where that was not done.
        read: from the folder to what its files list.
        expected: the official counts.
        exact: whether a copy with other counts is wrong; otherwise `survey` says why not.
        survey: what to know about the counts of the survey.
        source: where to get it, and where to put it.
        download: torchvision's own download into the root, where it has one.
    """

    name: str
    title: str
    places: tuple[str, ...]
    images: str
    archives: tuple[Archive, ...]
    read: Callable[[Path], Official]
    expected: Counts
    source: str
    exact: bool = True
    survey: str = ""
    download: Callable[[Path], object] | None = None

    def folder(self, root: Path) -> Path | None:
        """Its folder below `root`, if there is one: with its images, or else with anything."""
        folders = [root / place for place in self.places]
        whole = (folder for folder in folders if (folder / self.images).exists())
        begun = (folder for folder in folders if folder != root and _holds_anything(folder))
        return next(whole, None) or next(begun, None)

    def packed(self, root: Path) -> list[tuple[Path, Path]]:
        """(archive, folder to unpack it into) of each that is there and not unpacked."""
        return [
            (place / archive.name, root / archive.into)
            for archive in self.archives
            if not (root / archive.into / archive.holds).exists()
            for place in dict.fromkeys((root, root / archive.into))
            if (place / archive.name).is_file()
        ]


def _holds_anything(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _renumbered(listing: Listing, place: dict[int, int]) -> Listing:
    kept = [number for number, label in enumerate(listing.labels) if label in place]
    images = listing.images
    chosen: Images = images[kept] if isinstance(images, Tensor) else [images[n] for n in kept]
    return Listing(chosen, [place[listing.labels[number]] for number in kept])
