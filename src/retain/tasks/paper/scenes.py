"""MIT Indoor Scenes 67: `Images/<class>/<file>`, `TrainImages.txt` and `TestImages.txt`."""

from __future__ import annotations

from pathlib import Path

from retain.errors import FileError
from retain.tasks.images import ImageFile
from retain.tasks.paper.official import Archive, Counts, Listing, Official, PaperSet
from retain.tasks.paper.readers import read_lines


def read(folder: Path) -> Official:
    """What the two lists of paths below `Images` say; classes are sorted by name."""
    # A copy that is often shared has the lists beside the folder.
    beside = (
        not (folder / "TrainImages.txt").exists() and (folder.parent / "TrainImages.txt").exists()
    )
    lists_folder = folder.parent if beside else folder
    lists = {name: read_lines(lists_folder / f"{name}Images.txt") for name in ("Train", "Test")}
    classes = sorted({path.split("/")[0] for path in lists["Train"]})
    number = {name: label for label, name in enumerate(classes)}
    strange = [path for path in lists["Test"] if path.split("/")[0] not in number]
    if strange:
        raise FileError(
            f"{lists_folder / 'TestImages.txt'} lists classes that TrainImages.txt does not: "
            f"{', '.join(strange[:5])} ({len(strange)} paths). They do not belong together."
        )

    def listing(paths: list[str]) -> Listing:
        files = [ImageFile(folder / "Images" / path) for path in paths]
        return Listing(files, [number[path.split("/")[0]] for path in paths])

    return Official(tuple(classes), listing(lists["Train"]), listing(lists["Test"]))


SCENES = PaperSet(
    name="scenes",
    title="MIT Indoor Scenes 67",
    places=("indoorCVPR_09", "."),
    images="Images",
    archives=(Archive("indoorCVPR_09.tar", "indoorCVPR_09", "Images"),),
    read=read,
    expected=Counts(classes=67, train=5360, test=1340),
    source="https://web.mit.edu/torralba/www/indoor.html: indoorCVPR_09.tar, TrainImages.txt and "
    "TestImages.txt into indoorCVPR_09/",
)
