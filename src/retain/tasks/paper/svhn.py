"""SVHN, cropped digits: `train_32x32.mat` and `test_32x32.mat`, images [32, 32, 3, n] in `X`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from retain.errors import FileError
from retain.extras import needs
from retain.tasks.paper.official import Counts, Listing, Official, PaperSet
from retain.tasks.paper.readers import read_mat


def read(folder: Path) -> Official:
    """The images in memory; the label 10 stands for the digit 0 in the files."""
    classes = tuple(str(digit) for digit in range(10))
    return Official(
        classes, _listing(folder / "train_32x32.mat"), _listing(folder / "test_32x32.mat")
    )


def _listing(path: Path) -> Listing:
    images, labels = read_mat(path, "X", "y")
    if images.ndim != 4 or images.shape[2:] != (3, len(labels)) or images.dtype != np.uint8:
        raise FileError(
            f"{path} holds images of shape {images.shape} ({images.dtype}) and {len(labels)} "
            "labels; expected bytes [height, width, 3, as many as labels]."
        )
    if not set(np.unique(labels)) <= set(range(1, 11)):
        raise FileError(f"{path} has labels {np.unique(labels).tolist()}; expected 1 … 10.")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return Listing(pixels, [int(label) % 10 for label in labels])


def _download(root: Path) -> None:
    datasets = needs("torchvision.datasets")
    for split in ("train", "test"):
        datasets.SVHN(root / "svhn", split=split, download=True)


SVHN = PaperSet(
    name="svhn",
    title="SVHN",
    places=("svhn", "."),
    images="train_32x32.mat",
    archives=(),
    read=read,
    expected=Counts(classes=10, train=73257, test=26032),
    source="http://ufldl.stanford.edu/housenumbers/: train_32x32.mat and test_32x32.mat into svhn/",
    download=_download,
)
