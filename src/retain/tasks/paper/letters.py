"""Letters: the 52 English letters in the natural images of Chars74K.

`English/Img/GoodImg/Bmp/Sample011 … Sample062` hold A … Z and a … z (`Sample001 … Sample010` are
digits). The data set has no split that would leave enough to learn from: here 6850 of 8000 of each
letter, drawn with the survey's seed, are for learning, in the survey's proportion.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch

from retain.errors import FileError
from retain.tasks.images import ImageFile
from retain.tasks.paper.official import Archive, Counts, Listing, Official, PaperSet
from retain.tasks.splits import SURVEY_SEED, held_out

LETTERS = string.ascii_uppercase + string.ascii_lowercase
FIRST = 11
EXPECTED = Counts(classes=52, train=6850, test=1150)


def read(folder: Path) -> Official:
    """The images of each letter, split by the seed."""
    files: list[ImageFile] = []
    labels: list[int] = []
    for label in range(len(LETTERS)):
        of_letter = sorted((folder / f"Sample{FIRST + label:03d}").glob("*.png"))
        files += [ImageFile(path) for path in of_letter]
        labels += [label] * len(of_letter)
    if not files:
        raise FileError(
            f"{folder} has no images of letters: expected Sample011/ … Sample062/ with .png files."
        )
    fraction = EXPECTED.test / (EXPECTED.train + EXPECTED.test)
    train, test = held_out(torch.tensor(labels), fraction, seed=SURVEY_SEED)

    def listing(numbers: list[int]) -> Listing:
        return Listing([files[n] for n in numbers], [labels[n] for n in numbers])

    return Official(tuple(LETTERS), listing(train.tolist()), listing(test.tolist()))


CHARS74K = PaperSet(
    name="letters",
    title="Letters (Chars74K, English)",
    places=("English/Img/GoodImg/Bmp",),
    images=f"Sample{FIRST:03d}",
    archives=(Archive("EnglishImg.tgz", ".", "English/Img"),),
    read=read,
    expected=EXPECTED,
    exact=False,
    survey="the expected counts are the survey's, which does not say which images of Chars74K it "
    "takes nor how it splits them; here the good natural images, in the survey's proportion",
    source="https://teodecampos.github.io/chars74k/ "
    "(or http://www.ee.surrey.ac.uk/CVSSP/demos/chars74k/): EnglishImg.tgz",
)
