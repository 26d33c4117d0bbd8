"""Stanford Cars: `cars_train/`, `cars_test/`, and annotations in Matlab files of the devkit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retain.errors import FileError
from retain.tasks.images import ImageFile
from retain.tasks.paper.official import Archive, Counts, Listing, Official, PaperSet
from retain.tasks.paper.readers import read_mat

TEST_LABELS = "cars_test_annos_withlabels.mat"


def read(folder: Path) -> Official:
    """What the annotations list; whole images, without their bounding boxes."""
    devkit = folder / "devkit"
    (names,) = read_mat(devkit / "cars_meta.mat", "class_names")
    classes = tuple(str(name) for name in np.atleast_1d(names))
    # As torchvision expects it, or where the devkit has the file without labels.
    beside = folder / TEST_LABELS
    test = beside if beside.is_file() else devkit / TEST_LABELS
    if not test.is_file():
        raise FileError(
            f"{beside} is missing. (cars_test_annos.mat of the devkit has no labels: the file with "
            "them was a download of its own.)"
        )
    return Official(
        classes,
        _listing(devkit / "cars_train_annos.mat", folder / "cars_train", len(classes)),
        _listing(test, folder / "cars_test", len(classes)),
    )


def _listing(path: Path, images: Path, classes: int) -> Listing:
    (annotations,) = read_mat(path, "annotations")
    rows = np.atleast_1d(annotations)
    fields = rows.dtype.names or ()
    if not {"fname", "class"} <= set(fields):
        raise FileError(f"{path} has the fields {', '.join(fields)}; expected fname and class.")
    labels = [int(row["class"]) - 1 for row in rows]
    if min(labels) < 0 or max(labels) >= classes:
        raise FileError(
            f"{path} has classes up to {max(labels) + 1}; cars_meta.mat names {classes}."
        )
    return Listing([ImageFile(images / str(row["fname"])) for row in rows], labels)


CARS = PaperSet(
    name="cars",
    title="Stanford Cars",
    places=("stanford_cars", "."),
    images="cars_train",
    archives=(
        Archive("cars_train.tgz", "stanford_cars", "cars_train"),
        Archive("cars_test.tgz", "stanford_cars", "cars_test"),
        Archive("car_devkit.tgz", "stanford_cars", "devkit"),
    ),
    read=read,
    expected=Counts(classes=196, train=8144, test=8041),
    source="a copy (its official address, https://ai.stanford.edu/~jkrause/cars/, has gone): "
    "cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat into "
    "stanford_cars/",
)
