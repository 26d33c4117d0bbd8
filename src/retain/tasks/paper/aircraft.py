"""FGVC-Aircraft: `data/images/`, `data/variants.txt` and `data/images_variant_<split>.txt`.

The hundred variants, and the images as they are: the line of text at the bottom is left in, as in
the survey. Train and validation together are what is learned from.
"""

from __future__ import annotations

from pathlib import Path

from retain.extras import needs
from retain.tasks.images import ImageFile
from retain.tasks.paper.official import Archive, Counts, Listing, Official, PaperSet
from retain.tasks.paper.readers import parse_lines, read_lines


def read(folder: Path) -> Official:
    """What the lists say: a number of an image and the name of its variant in each line."""
    data = folder / "data"
    classes = read_lines(data / "variants.txt")
    number = {name: label for label, name in enumerate(classes)}

    def parse(line: str) -> tuple[ImageFile, int]:
        image, variant = line.split(" ", 1)
        return ImageFile(data / "images" / f"{image}.jpg"), number[variant]

    def listing(split: str) -> Listing:
        form = "the number of an image and a variant of variants.txt"
        rows = parse_lines(data / f"images_variant_{split}.txt", parse, form)
        return Listing([image for image, _ in rows], [label for _, label in rows])

    return Official(tuple(classes), listing("trainval"), listing("test"))


def _download(root: Path) -> object:
    return needs("torchvision.datasets").FGVCAircraft(root, download=True)


AIRCRAFT = PaperSet(
    name="aircraft",
    title="FGVC-Aircraft",
    places=("fgvc-aircraft-2013b",),
    images="data/images",
    archives=(Archive("fgvc-aircraft-2013b.tar.gz", ".", "fgvc-aircraft-2013b"),),
    read=read,
    expected=Counts(classes=100, train=6667, test=3333),
    survey="the survey counts 6666 to learn from, one less than the official list",
    source="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/: fgvc-aircraft-2013b.tar.gz",
    download=_download,
)
