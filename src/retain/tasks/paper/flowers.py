"""Oxford Flowers 102: `jpg/image_00001.jpg …`, `imagelabels.mat` and `setid.mat`.

As in the survey, the official train and validation sets together are what is learned from.
"""

from __future__ import annotations

from pathlib import Path

from retain.errors import FileError
from retain.extras import needs
from retain.tasks.images import ImageFile
from retain.tasks.paper.official import Archive, Counts, Listing, Official, PaperSet
from retain.tasks.paper.readers import read_mat


def read(folder: Path) -> Official:
    """What the files list; labels and image numbers count from 1 in them."""
    (labels,) = read_mat(folder / "imagelabels.mat", "labels")
    train, val, test = read_mat(folder / "setid.mat", "trnid", "valid", "tstid")
    classes = tuple(needs("torchvision.datasets").Flowers102.classes)
    highest = max(int(numbers.max()) for numbers in (train, val, test))
    if highest > len(labels) or labels.max() > len(classes):
        raise FileError(
            f"{folder / 'setid.mat'} goes up to image {highest} and imagelabels.mat has "
            f"{len(labels)} labels up to {labels.max()}; expected a label in 1 … {len(classes)} "
            "for each image. They do not belong together."
        )

    def listing(numbers: list[int]) -> Listing:
        files = [ImageFile(folder / "jpg" / f"image_{number:05d}.jpg") for number in numbers]
        return Listing(files, [int(labels[number - 1]) - 1 for number in numbers])

    learned = sorted([*train.tolist(), *val.tolist()])
    return Official(classes, listing(learned), listing(test.tolist()))


def _download(root: Path) -> object:
    return needs("torchvision.datasets").Flowers102(root, download=True)


FLOWERS = PaperSet(
    name="flowers",
    title="Oxford Flowers 102",
    places=("flowers-102",),
    images="jpg",
    archives=(Archive("102flowers.tgz", "flowers-102", "jpg"),),
    read=read,
    expected=Counts(classes=102, train=2040, test=6149),
    source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/: 102flowers.tgz, imagelabels.mat "
    "and setid.mat into flowers-102/",
    download=_download,
)
