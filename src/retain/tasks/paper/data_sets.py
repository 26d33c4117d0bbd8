"""The eight data sets in the order of the paper's long sequence, found on disk by their names."""

from __future__ import annotations

from pathlib import Path

from retain.closest import did_you_mean
from retain.errors import ConfigError, FileError
from retain.tasks.paper.actions import VOC_ACTIONS
from retain.tasks.paper.aircraft import AIRCRAFT
from retain.tasks.paper.birds import BIRDS
from retain.tasks.paper.cars import CARS
from retain.tasks.paper.flowers import FLOWERS
from retain.tasks.paper.letters import CHARS74K
from retain.tasks.paper.official import Official, PaperSet
from retain.tasks.paper.readers import unpack
from retain.tasks.paper.scenes import SCENES
from retain.tasks.paper.svhn import SVHN

PAPER_SETS: dict[str, PaperSet] = {
    data.name: data
    for data in (FLOWERS, SCENES, BIRDS, CARS, AIRCRAFT, VOC_ACTIONS, CHARS74K, SVHN)
}


def paper_set(name: str) -> PaperSet:
    """The data set of that short name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PAPER_SETS:
        raise ConfigError(
            f"The paper has no data set {name!r}.{did_you_mean(name, PAPER_SETS)} "
            f"Known: {', '.join(PAPER_SETS)}."
        )
    return PAPER_SETS[name]


def read_official(data: PaperSet, root: Path) -> Official:
    """What the files of a data set below `root` list; archives are unpacked first if need be.

    Raises:
        FileError: it is not there (the message says where to get it), or its files are not as
            they should be.
    """
    for archive, into in data.packed(root):
        unpack(archive, into)
    folder = data.folder(root)
    if folder is None:
        raise FileError(f"{data.title} is not in {root}. {how_to_get(data, root)}")
    return data.read(folder).of_present_classes()


def how_to_get(data: PaperSet, root: Path) -> str:
    """A sentence on where to get a data set and where to put it."""
    own = f" Or download_set({data.name!r}, {str(root)!r})." if data.download else ""
    return f"Get it from {data.source} below {root}.{own}"


def download_set(name: str, root: Path) -> None:
    """Have torchvision download a data set below `root`.

    Raises:
        ConfigError: an unknown name, or torchvision does not have it (the message says where to
            get it).
        FileError: the download failed.
    """
    data = paper_set(name)
    if data.download is None:
        raise ConfigError(f"torchvision does not download {data.title}. {how_to_get(data, root)}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        data.download(root)
    except (OSError, RuntimeError) as error:
        raise FileError(
            f"{data.title} could not be downloaded: {error}. Get it from {data.source} "
            f"below {root}."
        ) from error
