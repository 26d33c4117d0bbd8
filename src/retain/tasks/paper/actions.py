"""PASCAL VOC 2012 Actions: each person with a box and an action is an image of its own.

`ImageSets/Action/train.txt` and `val.txt` list images; `Annotations/<image>.xml` has the persons.
The labels of the official test set are not public, so that the validation set is measured on, as
in the survey. A person with several actions has no single label and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from retain.errors import FileError
from retain.extras import needs
from retain.tasks.images import Box, ImageFile
from retain.tasks.paper.official import Archive, Counts, Listing, Official, PaperSet
from retain.tasks.paper.readers import parse_lines

ACTIONS = (
    *("jumping", "phoning", "playinginstrument", "reading", "ridingbike", "ridinghorse"),
    *("running", "takingphoto", "usingcomputer", "walking", "other"),
)
SIDES = ("xmin", "ymin", "xmax", "ymax")


def read(folder: Path) -> Official:
    """What the lists and annotations say, a person at a time."""
    train, several = _listing(folder, "train")
    test, more = _listing(folder, "val")
    left_out = several + more
    remark = f"{left_out} persons without exactly one action have no single label and are left out"
    return Official(ACTIONS, train, test, (remark,) if left_out else ())


def _listing(folder: Path, split: str) -> tuple[Listing, int]:
    """(the persons with one action, how many have another number of them)."""
    listed = folder / "ImageSets" / "Action" / f"{split}.txt"
    # Some copies give the number of a person behind that of the image; the annotation has them all.
    images = dict.fromkeys(parse_lines(listed, lambda line: line.split()[0], "an image"))
    files, labels, left_out = [], [], 0
    for image in images:
        for actions, box in _persons(folder / "Annotations" / f"{image}.xml"):
            if len(actions) != 1:
                left_out += 1
                continue
            files.append(ImageFile(folder / "JPEGImages" / f"{image}.jpg", box))
            labels.append(ACTIONS.index(actions[0]))
    return Listing(files, labels), left_out


def _persons(path: Path) -> Iterator[tuple[list[str], Box]]:
    """(actions, box) of each person that actions are given for."""
    try:
        annotation = ElementTree.parse(path).getroot()
        for found in annotation.iter("object"):
            flags = found.find("actions")
            if flags is None:
                continue
            actions = [flag.tag for flag in flags if flag.text and float(flag.text) > 0.5]
            yield [action for action in actions if action in ACTIONS], _box(found)
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing.") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise FileError(f"{path} is not an annotation of VOC: {error}.") from error


def _box(found: ElementTree.Element) -> Box:
    """(left, upper, right, lower); the file counts pixels from 1 and includes the last."""
    left, upper, right, lower = (round(_number(found, f"bndbox/{side}")) for side in SIDES)
    return left - 1, upper - 1, right, lower


def _number(found: ElementTree.Element, name: str) -> float:
    text = found.findtext(name)
    if text is None:
        raise ValueError(f"an object has no {name}")
    return float(text)


def _download(root: Path) -> object:
    return needs("torchvision.datasets").VOCDetection(root, year="2012", download=True)


VOC_ACTIONS = PaperSet(
    name="actions",
    title="PASCAL VOC 2012 Actions",
    places=("VOCdevkit/VOC2012", "VOC2012"),
    images="JPEGImages",
    archives=(Archive("VOCtrainval_11-May-2012.tar", ".", "VOCdevkit/VOC2012"),),
    read=read,
    expected=Counts(classes=11, train=3102, test=3108),
    exact=False,
    survey="the expected counts are the survey's, which does not say what it does with persons "
    "with several actions; here they are left out",
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/: VOCtrainval_11-May-2012.tar",
    download=_download,
)
