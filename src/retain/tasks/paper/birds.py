"""CUB-200-2011: `images/`, and four lists that are joined by the number of the image."""

from __future__ import annotations

from pathlib import Path

from retain.errors import FileError
from retain.tasks.images import ImageFile
from retain.tasks.paper.official import Archive, Counts, Listing, Official, PaperSet
from retain.tasks.paper.readers import parse_lines


def read(folder: Path) -> Official:
    """What the lists say; whole images, as in the paper, without their bounding boxes."""
    names = _numbered(folder / "classes.txt", "number and name of a class")
    paths = _numbered(folder / "images.txt", "number and path of an image")
    labels = _numbered(folder / "image_class_labels.txt", "number of an image and of its class")
    trains = _numbered(folder / "train_test_split.txt", "number of an image, and 1 (train) or 0")
    if not set(paths) == set(labels) == set(trains):
        raise FileError(
            f"The lists in {folder} do not belong together: images.txt has {len(paths)} images, "
            f"image_class_labels.txt {len(labels)}, train_test_split.txt {len(trains)}."
        )
    place = {number: label for label, number in enumerate(sorted(names))}
    unknown = sorted({label for label in labels.values() if int(label) not in place})
    if unknown:
        raise FileError(f"{folder / 'classes.txt'} does not name the classes {unknown[:10]}.")

    def listing(flag: str) -> Listing:
        chosen = [number for number in sorted(paths) if trains[number] == flag]
        files = [ImageFile(folder / "images" / paths[number]) for number in chosen]
        return Listing(files, [place[int(labels[number])] for number in chosen])

    classes = tuple(_readable(names[number]) for number in sorted(names))
    return Official(classes, listing("1"), listing("0"))


def _numbered(path: Path, form: str) -> dict[int, str]:
    def parse(line: str) -> tuple[int, str]:
        number, _, value = line.partition(" ")
        if not value.strip():
            raise ValueError(line)
        return int(number), value.strip()

    return dict(parse_lines(path, parse, form))


def _readable(name: str) -> str:
    """`001.Black_footed_Albatross` as `Black footed Albatross`."""
    return name.partition(".")[2].replace("_", " ") or name


BIRDS = PaperSet(
    name="birds",
    title="CUB-200-2011",
    places=("CUB_200_2011", "."),
    images="image_class_labels.txt",
    archives=(Archive("CUB_200_2011.tgz", ".", "CUB_200_2011"),),
    read=read,
    expected=Counts(classes=200, train=5994, test=5794),
    source="https://data.caltech.edu/records/65de6-vp158: CUB_200_2011.tgz",
)
