"""From what is asked to a study: the protocol of the data, the study's own, then the user's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from retain.errors import ConfigError, FileError
from retain.experiment import Config
from retain.models.build import DEFAULT_WEIGHTS, SMALL
from retain.models.named import named_model
from retain.studies.asked import UNTRAINED, Asked
from retain.studies.material import Material, Order, Orders
from retain.studies.paper_data import PaperData
from retain.studies.protocol import departures
from retain.studies.stand_ins import Digits, Folders
from retain.studies.study import Part, Study

# What the paper compares; it has one IMM and does not say which of the two.
COMPARED = ("finetune", "lwf", "ebll", "imm-mean", "imm-mode", "ewc", "si", "mas")


def material_of(asked: Asked) -> Material:
    """The data that were asked for.

    Raises:
        ConfigError: there are none such, or a choice that they do not have.
        FileError: a folder of images is not laid out as it should be.
    """
    name = asked.data.partition(":")[0]
    if asked.data == "digits":
        if asked.sets:
            raise ConfigError("--sets chooses among data sets, and digits are one. Leave it out.")
        return Digits()
    if name == "folders":
        return Folders(asked.data, asked.sets)
    return PaperData(asked.data, asked.sets)


def setting(material: Material, asked: Asked, order: Order, **own: Any) -> Config:
    """The config of one part; `own` is what the study says of it."""
    methods = own["methods"]
    settings: dict[str, Any] = {**material.protocol}
    settings |= dict(material.quick) if asked.quick else {}
    strengths = {**settings.pop("strengths", {}), **own.pop("strengths", {})}
    settings |= {**own, **asked.settings(), **order.settings, "quick": asked.quick}
    kept = {method: strength for method, strength in strengths.items() if method in methods}
    settings["strengths"] = {**kept, **asked.strengths}
    settings["weights"] = _weights(asked, settings)
    if settings["model"] not in SMALL and asked.image_size is None:
        settings.pop("image_size", None)
    return Config(**settings)


def study_of(
    name: str,
    title: str,
    material: Material,
    asked: Asked,
    *,
    parts: Iterable[Part],
    orders: Orders,
    **own: Any,
) -> Study:
    """The study of those parts, with everything that has to be known about its data.

    Raises:
        ConfigError: there is no part that can be run.
    """
    parts = tuple(parts)
    if not parts:
        reasons = "\n".join(f"  - {what}: {why}" for what, why in orders.skipped.items())
        raise ConfigError(
            f"Nothing of {name} can be run with {material.data}:\n{reasons}\n`retain datasets "
            f"--data {material.data}` shows what is there. To see the study work without the "
            "paper's data: --data digits."
        )
    stated: dict[str, Any] = {"departures": ()}
    if not material.stand_in:
        stated["departures"] = (*departures(parts[0].config), *orders.remarks)
    return Study(
        name=name,
        title=title,
        data=material.data,
        parts=parts,
        stand_in=material.stand_in,
        quick=asked.quick,
        splits=material.splits,
        skipped=orders.skipped,
        altered=orders.altered,
        **{**stated, **own},
    )


def _weights(asked: Asked, settings: dict[str, Any]) -> str | None:
    """The weights to start from; in a quick version untrained ones if there are no others."""
    if asked.weights is not None:
        return None if asked.weights == UNTRAINED else asked.weights
    model = settings["model"]
    if settings.get("weights") != DEFAULT_WEIGHTS or model in SMALL or ".py:" in model:
        return None
    if not asked.quick:
        return DEFAULT_WEIGHTS
    try:
        named_model(model, default_weights=True)
    except FileError:
        return None
    return DEFAULT_WEIGHTS
