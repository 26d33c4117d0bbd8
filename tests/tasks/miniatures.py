"""Miniatures of the eight data sets of the paper, each in its official layout, format by format.

Every image is a photograph-like picture: a background that fades, a disc in the colour of its
class, and noise. So small copies behave as the real ones do, to the last file name.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat


class Size(NamedTuple):
    """Images of each class to learn from and to measure on."""

    train: int = 4
    test: int = 4


def picture(label: int, number: int, width: int = 48, height: int = 40) -> Image.Image:
    """A picture of class `label`; `number` makes it differ from others of its class."""
    random = np.random.default_rng([label, number])
    rows, columns = np.mgrid[0:height, 0:width]
    fade = 60 + 80 * rows / height
    canvas = np.stack([fade, fade, fade + 20], axis=-1)
    down, right = (random.uniform(0.35, 0.65) * side for side in (height, width))
    disc = (rows - down) ** 2 + (columns - right) ** 2 < (0.3 * min(height, width)) ** 2
    canvas[disc] = np.array(colorsys.hsv_to_rgb(label * 0.382 % 1, 0.9, 0.9)) * 255
    canvas += random.normal(0, 8, canvas.shape)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def save(path: Path, label: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(label, number).save(path, quality=90)


def write_miniatures(root: Path, size: Size = Size()) -> Path:  # noqa: B008
    """All eight below `root`, as if they had been downloaded and unpacked there."""
    for write in WRITERS.values():
        write(root, size)
    return root


def flowers(root: Path, size: Size) -> None:
    """Classes 1, 51 and 102; train and validation share what is to be learned from."""
    folder = root / "flowers-102"
    labels, splits = [], {"trnid": [], "valid": [], "tstid": []}
    for label in (1, 51, 102):
        for number in range(size.train + size.test):
            labels.append(label)
            save(folder / "jpg" / f"image_{len(labels):05d}.jpg", label, number)
            learned = "trnid" if number % 2 else "valid"
            splits[learned if number < size.train else "tstid"].append(len(labels))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    ids = {name: np.array([numbers], dtype=np.uint16) for name, numbers in splits.items()}
    savemat(folder / "setid.mat", ids)


def scenes(root: Path, size: Size) -> None:
    folder = root / "indoorCVPR_09"
    lists: dict[str, list[str]] = {"Train": [], "Test": []}
    for label, name in enumerate(("airport_inside", "bakery", "winecellar")):
        for number in range(size.train + size.test):
            path = f"{name}/{name}_{number:04d}.jpg"
            save(folder / "Images" / path, label, number)
            lists["Train" if number < size.train else "Test"].append(path)
    for split, paths in lists.items():
        (folder / f"{split}Images.txt").write_text("\n".join(paths))


def birds(root: Path, size: Size) -> None:
    folder = root / "CUB_200_2011"
    names = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
    lists: dict[str, list[str]] = {name: [] for name in ("images", "labels", "split", "boxes")}
    number = 0
    for label, name in enumerate(names, start=1):
        for place in range(size.train + size.test):
            number += 1
            path = f"{name}/{name.partition('.')[2]}_{place:04d}_{number}.jpg"
            save(folder / "images" / path, label, place)
            lists["images"].append(f"{number} {path}")
            lists["labels"].append(f"{number} {label}")
            lists["split"].append(f"{number} {int(place < size.train)}")
            lists["boxes"].append(f"{number} 6.0 5.0 30.0 28.0")
    files = {
        "images.txt": lists["images"],
        "image_class_labels.txt": lists["labels"],
        "train_test_split.txt": lists["split"],
        "bounding_boxes.txt": lists["boxes"],
        "classes.txt": [f"{label} {name}" for label, name in enumerate(names, start=1)],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")


def cars(root: Path, size: Size) -> None:
    folder = root / "stanford_cars"
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]
    (folder / "devkit").mkdir(parents=True)
    cells = np.array([names], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cells})
    for split, count in (("train", size.train), ("test", size.test)):
        rows = []
        for label in range(1, len(names) + 1):
            for number in range(count):
                file = f"{len(rows) + 1:05d}.jpg"
                save(folder / f"cars_{split}" / file, label, number + 100 * (split == "test"))
                rows.append((6, 5, 36, 33, label, file))
        sides = [f"bbox_{side}" for side in ("x1", "y1", "x2", "y2")]
        annotations = struct(rows, [*sides, "class", "fname"])
        if split == "train":
            savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": annotations})
            continue
        savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations})
        without = struct([(*row[:4], row[5]) for row in rows], [*sides, "fname"])
        savemat(folder / "devkit" / "cars_test_annos.mat", {"annotations": without})


def struct(rows: list[tuple[object, ...]], fields: list[str]) -> np.ndarray:
    """A Matlab structure array of one row."""
    return np.array(rows, dtype=[(name, object) for name in fields])[None]


def aircraft(root: Path, size: Size) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ("707-320", "Boeing 717", "F-16A/B")
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, variant in enumerate(variants):
        for number in range(size.train + size.test):
            image = f"{1000000 + 1000 * label + number}"
            save(data / "images" / f"{image}.jpg", label, number)
            learned = "train" if number % 2 else "val"
            lists[learned if number < size.train else "test"].append(f"{image} {variant}")
    lists["trainval"] = sorted(lists["train"] + lists["val"])
    (data / "variants.txt").write_text("\n".join(variants) + "\n")
    for split, lines in lists.items():
        (data / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")


PERSON = """  <object>
    <name>person</name>
    <actions>
{actions}
    </actions>
    <bndbox>
      <xmax>{xmax}</xmax>
      <xmin>{xmin}</xmin>
      <ymax>{ymax}</ymax>
      <ymin>{ymin}</ymin>
    </bndbox>
    <difficult>0</difficult>
    <pose>Unspecified</pose>
    <point><x>9</x><y>9</y></point>
  </object>"""
ACTIONS = (
    *("jumping", "phoning", "playinginstrument", "reading", "ridingbike", "ridinghorse"),
    *("running", "takingphoto", "usingcomputer", "walking", "other"),
)
# (xmin, ymin, xmax, ymax) counted from 1, the last pixel included; some are fractions, as there.
LEFT_BOX, RIGHT_BOX = (1, 1, 40, 60), (41.4, 21, 100, 75.2)


def person(actions: tuple[str, ...], box: tuple[float, ...]) -> str:
    flags = "\n".join(f"      <{name}>{int(name in actions)}</{name}>" for name in ACTIONS)
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), box))
    return PERSON.format(actions=flags, **sides)


def actions(root: Path, size: Size) -> None:
    """Two persons an image, one in each box; in the last image of a split one does two things."""
    folder = root / "VOCdevkit" / "VOC2012"
    for name in ("Annotations", "JPEGImages", "ImageSets/Action"):
        (folder / name).mkdir(parents=True)
    chosen = ("jumping", "reading", "other")
    image = 0
    for split, count in (("train", size.train), ("val", size.test)):
        listed = []
        for number in range(count):
            for place, action in enumerate(chosen):
                image += 1
                other = chosen[(place + 1) % len(chosen)]
                both = number == 0 and place == 0
                name = f"2010_{image:06d}"
                canvas = Image.new("RGB", (120, 90), (90, 90, 90))
                for box, label in ((LEFT_BOX, action), (RIGHT_BOX, other)):
                    left, upper, right, lower = (round(side) for side in box)
                    shape = (right - left + 1, lower - upper + 1)
                    part = picture(ACTIONS.index(label), number, *shape)
                    canvas.paste(part, (left - 1, upper - 1))
                canvas.save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
                done = (other, "walking") if both else (other,)
                persons = f"{person((action,), LEFT_BOX)}\n{person(done, RIGHT_BOX)}"
                chair = "<object><name>chair</name></object>"
                (folder / "Annotations" / f"{name}.xml").write_text(
                    f"<annotation>\n  <folder>VOC2012</folder>\n{persons}\n  {chair}\n</annotation>"
                )
                listed.append(name)
        (folder / "ImageSets" / "Action" / f"{split}.txt").write_text("\n".join(listed) + "\n")


def letters(root: Path, size: Size) -> None:
    """A, B and a, and the digit 0, which is no letter."""
    for kind in ("GoodImg", "BadImag"):
        for sample in (1, 11, 12, 37):
            for number in range(1, size.train + size.test + 1):
                file = f"Sample{sample:03d}/img{sample:03d}-{number:05d}.png"
                save(root / "English" / "Img" / kind / "Bmp" / file, sample, number)


def svhn(root: Path, size: Size) -> None:
    """The digits 1, 2 and 0, which is 10 in the files."""
    (root / "svhn").mkdir(parents=True)
    for split, count in (("train", size.train), ("test", size.test)):
        labels = [label for label in (1, 2, 10) for _ in range(count)]
        images = [
            np.asarray(picture(label, number + 100 * (split == "test"), 32, 32))
            for number, label in enumerate(labels)
        ]
        content = {"X": np.stack(images, axis=-1), "y": np.array([labels], dtype=np.uint8).T}
        savemat(root / "svhn" / f"{split}_32x32.mat", content)


WRITERS: dict[str, Callable[[Path, Size], None]] = {
    "flowers": flowers,
    "scenes": scenes,
    "birds": birds,
    "cars": cars,
    "aircraft": aircraft,
    "actions": actions,
    "letters": letters,
    "svhn": svhn,
}
