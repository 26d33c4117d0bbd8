"""MNIST and Fashion-MNIST from the IDX files that they come in, gzipped or not, read strictly.

The format: two zero bytes, a type (8: unsigned bytes), the number of dimensions, each dimension as
a big-endian 32-bit integer, then the numbers (http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retain import readable
from retain.errors import FileError
from retain.tasks.whole import WholeSet

UNSIGNED_BYTES = 8
# Names as published, and with the dot that some archives put into them.
PARTS = {
    f"{split} {kind}": (f"{stem}-{kind}-idx{dims}-ubyte", f"{stem}-{kind}.idx{dims}-ubyte")
    for split, stem in (("train", "train"), ("test", "t10k"))
    for kind, dims in (("images", 3), ("labels", 1))
}


@dataclass(frozen=True)
class IdxSet:
    """A data set of ten classes in four IDX files.

    Attributes:
        name: as in the specification of tasks.
        classes: their names in the order of the labels.
        folders: where the files may lie below the root that is given.
        source: where to get them.
    """

    name: str
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    source: str


MNIST = IdxSet(
    "mnist",
    tuple(str(digit) for digit in range(10)),
    (".", "MNIST/raw", "raw", "mnist"),
    "torchvision.datasets.MNIST(ROOT, download=True)",
)
FASHION_MNIST = IdxSet(
    "fashion-mnist",
    (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    (".", "FashionMNIST/raw", "raw", "fashion-mnist"),
    "torchvision.datasets.FashionMNIST(ROOT, download=True), or on Debian "
    "`apt-get install dataset-fashion-mnist` (then ROOT is /usr/share/datasets/fashion-mnist)",
)


def read_set(data: IdxSet, root: Path) -> WholeSet:
    """The data set below `root`: images [n, 1, h, w] in [0, 1] and labels.

    Raises:
        FileError: files are missing, truncated, not IDX, or do not belong together.
    """
    paths = _located(data, root)
    train, test = (_read_split(data, paths, split) for split in ("train", "test"))
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = " and ".join("×".join(map(str, part[0].shape[2:])) for part in (train, test))
        raise FileError(f"The train and test images below {root} have different sizes: {shapes}.")
    return WholeSet(data.classes, train, test)


def read_idx(path: Path, dims: int) -> Tensor:
    """The unsigned bytes in an IDX file of `dims` dimensions.

    Raises:
        FileError: it is not such a file, or holds fewer or more bytes than it says.
    """
    header = 4 + 4 * dims
    expected = bytes([0, 0, UNSIGNED_BYTES, dims])
    content = _content(path, header, expected)
    if content[:4] != expected:
        raise FileError(
            f"{path} is not an IDX file of unsigned bytes in {dims} dimension(s): it begins with "
            f"{content[:4].hex(' ') or 'nothing'}, expected {expected.hex(' ')}. "
            "Is it another file, or an archive that was renamed?"
        )
    if len(content) < header:
        raise FileError(f"{path} ends within its header. Get it again: it was cut off.")
    shape = [int.from_bytes(content[4 + 4 * d : 8 + 4 * d], "big") for d in range(dims)]
    found, wanted = len(content) - header, math.prod(shape)
    if found != wanted:
        raise FileError(
            f"{path} says that it holds {' × '.join(map(str, shape))} = {wanted} numbers, but "
            f"{found} follow. Get it again: it was {'cut off' if found < wanted else 'changed'}."
        )
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).view(shape)


def _content(path: Path, header: int, magic: bytes) -> bytes:
    """The header and what it says that follows, or a byte more where there is more.

    Of a file that does not begin with `magic`: the header, or what there is of it.

    A small file of gzip may unpack into more than any memory has.
    """
    if why := readable.why_not(path):
        raise FileError(f"{path} {why}.")
    room = readable.memory_bytes()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            start: bytes = opened.read(header)
            if not start.startswith(magic):
                return start
            sides = [int.from_bytes(start[at : at + 4], "big") for at in range(4, header, 4)]
            if room is not None and math.prod(sides) > room:
                raise FileError(
                    f"{path} says that it holds {' × '.join(map(str, sides))} numbers, and this "
                    f"machine has {room / 1e9:,.0f} GB. Is it another file?"
                )
            return start + opened.read(math.prod(sides) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FileError(f"{path} is not a whole gzip file: {error}. Get it again.") from error
    except OSError as error:
        raise FileError(f"{path} could not be read: {error}.") from error


def _located(data: IdxSet, root: Path) -> dict[str, Path]:
    """The path of each part; the folder with the most of them is the one that is meant."""
    found = [
        {part: path for part, names in PARTS.items() if (path := _one_of(root / folder, names))}
        for folder in data.folders
    ]
    best = max(found, key=len)
    missing = [names[0] for part, names in PARTS.items() if part not in best]
    if missing:
        looked = ", ".join(str(root / folder) for folder in data.folders)
        raise FileError(
            f"Files of {data.name} are missing: {', '.join(missing)} (or the same with .gz). "
            f"Looked in {looked}. To get them: {data.source}."
        )
    return best


def _one_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = [folder / f"{name}{suffix}" for suffix in ("", ".gz") for name in names]
    return next((path for path in candidates if path.is_file()), None)


def _read_split(data: IdxSet, paths: dict[str, Path], split: str) -> tuple[Tensor, Tensor]:
    images = read_idx(paths[f"{split} images"], 3)
    labels = read_idx(paths[f"{split} labels"], 1)
    if len(images) != len(labels):
        raise FileError(
            f"{paths[f'{split} images']} holds {len(images)} images, but "
            f"{paths[f'{split} labels']} {len(labels)} labels: they do not belong together."
        )
    absent = sorted(set(range(len(data.classes))) - set(labels.unique().tolist()))
    if absent or labels.max() >= len(data.classes):
        raise FileError(
            f"{paths[f'{split} labels']} should hold labels 0 … {len(data.classes) - 1}, each at "
            f"least once; found {labels.unique().tolist()}."
        )
    return images.unsqueeze(1).float().div_(255), labels.long()
