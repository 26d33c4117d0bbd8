"""The paper: its numbers with their source, how it trained, and in what a study departs from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from retain.experiment import Config
from retain.tasks.crops import PAPER_SIZE


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """The content of `paper.json`: Tables 2 and 3, the long sequence, and where they are from."""
    text = files("retain").joinpath("studies/paper.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def published_pairs() -> list[tuple[str, str]]:
    """The sequences of two data sets of Tables 2 and 3."""
    return [(first, second) for first, second in published()["table2"]["sequences"]]


def published_sequence() -> list[str]:
    """The data sets of the long sequence, in its order."""
    return list(published()["sequence"]["tasks"])


# AlexNet pre-trained on ImageNet (the paper); optimiser, schedule, λ and form of the penalty: the
# authors' public code; crops and flips: the public code of the survey of De Lange et al.
PAPER: Mapping[str, Any] = {
    "model": "alexnet",
    "weights": "default",
    "optimizer": "sgd",
    "lr": 8e-4,
    "lr_drop_every": 54,
    "epochs": 100,
    "batch_size": 200,
    "augmentation": "crop-flip",
    "forms": ("gradient",),
    "strengths": {"mas": 1.0},
    "seeds": (0,),
}
# Enough to see that everything works, and no more.
QUICK: Mapping[str, Any] = {"epochs": 1, "samples_per_class": 4, "batch_size": 8}

NAMES = {
    "model": "model",
    "optimizer": "optimizer",
    "lr": "learning rate",
    "lr_drop_every": "epochs between drops of the learning rate",
    "epochs": "epochs",
    "batch_size": "batch size",
    "augmentation": "augmentation",
    "forms": "form of the penalty",
}


def departures(config: Config) -> Iterator[str]:
    """In what a config is not the paper's protocol, a clause each."""
    for name, said in NAMES.items():
        found, paper = getattr(config, name), PAPER[name]
        if found != paper:
            yield f"{said} {_shown(found)} (protocol: {_shown(paper)})"
    if config.weights is None:
        yield "untrained weights (protocol: pre-trained on ImageNet)"
    elif config.weights != "default":
        yield f"weights from {config.weights} (protocol: pre-trained on ImageNet)"
    if config.image_size not in (None, PAPER_SIZE):
        yield f"images of {config.image_size} pixels (protocol: {PAPER_SIZE})"
    if config.samples_per_class is not None:
        yield f"{config.samples_per_class} images of each class (protocol: all)"
    used = config.strengths_of("mas")
    if "mas" in config.methods and used != (PAPER["strengths"]["mas"],):
        yield f"λ of MAS {_shown(used)} (protocol: 1)"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_shown(one) for one in value) or "of each method's own"
    return f"{value:g}" if isinstance(value, float) else str(value)
