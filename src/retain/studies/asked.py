"""What a user asks of a study; what is left out is the protocol's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retain.experiment.config import Strength

UNTRAINED = "none"  # said for --weights, where weights are the default


@dataclass(frozen=True)
class Asked:
    """The options of a study, all of which can be left out but the data.

    Attributes:
        data: a folder that holds the paper's data sets, or stand-ins: "digits" or
            "folders:a=PATH,b=PATH".
        sets: which of the data sets; () is all that the study uses.
        model: which network.
        weights: "default" for the library's own, a file, or "none" for untrained ones.
        seeds: every method runs once per seed.
        epochs: epochs per task.
        batch_size: samples per step.
        lr: learning rate.
        optimizer: "sgd" or "adam".
        image_size: side of the square that image files are cropped to.
        samples_per_class: at most so many images of a class in each split.
        strengths: λ by method, as in a run.
        forms: forms of the quadratic penalty, as in a run.
        adapt_to: the classes of the first task that matter, in the study of adaptation.
        quick: a reduced version.
        device: "auto", or a device of torch.
        amp: mixed precision.
        workers: processes that read images.
    """

    data: str
    sets: tuple[str, ...] = ()
    model: str | None = None
    weights: str | None = None
    seeds: tuple[int, ...] = ()
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: str | None = None
    image_size: int | None = None
    samples_per_class: int | None = None
    strengths: Mapping[str, Strength | Sequence[Strength]] = field(default_factory=dict)
    forms: tuple[str, ...] = ()
    adapt_to: tuple[str, ...] = ()
    quick: bool = False
    device: str | None = None
    amp: bool = False
    workers: int | None = None

    def settings(self) -> dict[str, Any]:
        """What was asked for, by the names of a config's fields; weights aside."""
        given = {
            "model": self.model,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "optimizer": self.optimizer,
            "image_size": self.image_size,
            "samples_per_class": self.samples_per_class,
            "device": self.device,
            "workers": self.workers,
        }
        found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        found |= {"seeds": self.seeds} if self.seeds else {}
        found |= {"forms": self.forms} if self.forms else {}
        found |= {"amp": True} if self.amp else {}
        return found
