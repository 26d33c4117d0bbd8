"""What there is of the paper's data sets in a folder, and what is missing or wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from retain.errors import FileError
from retain.tasks.images import Progress, decode_all
from retain.tasks.paper.data_sets import PAPER_SETS, how_to_get, paper_set
from retain.tasks.paper.official import Counts, Listing, Official, PaperSet

SetState = Literal["complete", "usable", "packed", "broken", "missing"]
NAMED = 5
# Images are only decoded to see whether they can be; small ones are quick to make.
DECODED_SIDE = 32


@dataclass(frozen=True)
class Inspection:
    """One data set as it was found.

    Attributes:
        name: its short name.
        title: its full name.
        state: "complete" (as it should be), "usable" (readable, but see `problems`), "packed"
            (archives that are unpacked at first use), "broken" (cannot be read) or "missing".
        folder: where it lies.
        found: classes and images that are there; None where nothing could be read.
        expected: the official counts, or the survey's.
        problems: everything that is missing or wrong, a sentence each.
        remarks: what is worth knowing and not wrong.
        source: where to get it, and where to put it.
    """

    name: str
    title: str
    state: SetState
    folder: Path | None
    found: Counts | None
    expected: Counts
    problems: tuple[str, ...]
    remarks: tuple[str, ...]
    source: str


def inspect_data(
    root: Path,
    names: Iterable[str] = tuple(PAPER_SETS),
    *,
    decode: bool = False,
    progress: Progress | None = None,
) -> list[Inspection]:
    """What there is of each data set below `root`; nothing is changed, nothing is raised for it.

    Args:
        root: the folder of all data sets.
        names: which to look for; all eight by default.
        decode: also read every image, to find damaged ones.
        progress: called while images are read.

    Raises:
        ConfigError: an unknown name.
    """
    return [_inspected(paper_set(name), root, decode, progress) for name in names]


def _inspected(data: PaperSet, root: Path, decode: bool, progress: Progress | None) -> Inspection:
    folder = data.folder(root)
    source = how_to_get(data, root)
    blank = Inspection(
        data.name, data.title, "missing", folder, None, data.expected, (), (), source
    )
    archives = [archive.name for archive, _ in data.packed(root)]
    if archives:
        remark = f"{', '.join(archives)} will be unpacked at first use"
        return replace(blank, state="packed", remarks=(remark,))
    if folder is None:
        return replace(blank, problems=(f"not found in {root}",))
    try:
        official = data.read(folder).of_present_classes()
    except FileError as error:
        return replace(blank, state="broken", problems=(str(error),))
    problems = _absent(official, folder)
    if decode:
        problems += _undecodable(data.name, official, progress)
    return _judged(blank, data, official, problems)


def _judged(
    blank: Inspection, data: PaperSet, official: Official, problems: list[str]
) -> Inspection:
    """The inspection of a data set that can be read."""
    found = _counted(official)
    differences = _differences(found, data.expected)
    remarks = [*official.remarks, *([data.survey] if data.survey else [])]
    if data.exact:
        problems = problems + differences
    else:
        remarks = differences + remarks
    state: SetState = "usable" if problems else "complete"
    return replace(
        blank, state=state, found=found, problems=tuple(problems), remarks=tuple(remarks)
    )


def _counted(official: Official) -> Counts:
    train, test = (
        len(listing) - len(_without_file(listing)) for listing in (official.train, official.test)
    )
    return Counts(len(official.classes), train, test)


def _without_file(listing: Listing) -> list[int]:
    if isinstance(listing.images, Tensor):
        return []
    gone = set(listing.absent())
    return [number for number, image in enumerate(listing.images) if image.path in gone]


def _absent(official: Official, folder: Path) -> list[str]:
    problems = []
    for split, listing in (("train", official.train), ("test", official.test)):
        gone = [_shown(path, folder) for path in listing.absent()]
        if gone:
            problems.append(f"{split}: {len(gone)} listed images are not there: {_few(gone)}")
    return problems


def _undecodable(name: str, official: Official, progress: Progress | None) -> list[str]:
    problems = []
    for split, listing in (("train", official.train), ("test", official.test)):
        if isinstance(listing.images, Tensor):
            continue
        files = [image for image in listing.images if image.path.is_file()]

        def heard(done: int, what: str = f"{name} {split}", count: int = len(files)) -> None:
            if progress is not None:
                progress(what, done, count)

        decoded = zip(files, decode_all(files, DECODED_SIDE, heard))
        bad = [f"{file.path.name} ({image.failure})" for file, image in decoded if image.failure]
        if bad:
            problems.append(f"{split}: {len(bad)} images cannot be read: {_few(bad)}")
    return problems


def _differences(found: Counts, expected: Counts) -> list[str]:
    kinds = (("classes", "classes"), ("train", "images to learn from"), ("test", "test images"))
    return [
        f"{getattr(found, kind)} {what}, expected {getattr(expected, kind)}"
        for kind, what in kinds
        if getattr(found, kind) != getattr(expected, kind)
    ]


def _few(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
