"""The studies: each a named function that returns what is to be run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from retain import arguments
from retain.closest import did_you_mean
from retain.errors import ConfigError, FileError
from retain.experiment import Config
from retain.experiment.checks import unknown
from retain.models.build import DEFAULT_WEIGHTS, SMALL
from retain.models.named import named_model
from retain.studies.data import Digits, Folders, Material, Order, Orders, PaperData
from retain.studies.paper import departures
from retain.studies.study import UNTRAINED, Asked, Part, Study
from retain.tasks.code_files import is_code

# What the paper compares; it has one IMM and does not say which of the two.
COMPARED = ("finetune", "lwf", "ebll", "imm-mean", "imm-mode", "ewc", "si", "mas")
# Table 3: by output and by layer, and the data that Ω is computed on.
SENSITIVE = ("mas", "local-mas")
DATA = ("train", "test", "train+test")
# One of each kind: of a long sequence of large networks others keep many copies.
QUICK = ("finetune", "lwf", "si", "mas")
KEEPING = (*COMPARED[:6], "online-ewc", *COMPARED[6:], "local-mas")
# Bytes depend on the network and on the classes, not on how long or how well it is trained.
LITTLE: dict[str, Any] = {"epochs": 1, "seeds": (0,)}
LITTLE_OF_IMAGES: dict[str, Any] = {"samples_per_class": 2, "batch_size": 4, "weights": None}
ADAPTING_SEEDS = (0, 1, 2, 3, 4)
# Digits: so weak that something is forgotten, and there is something to choose.
ADAPTING_STRENGTH = 0.003
LISTED = 20


def material_of(asked: Asked) -> Material:
    """The data that were asked for.

    Raises:
        ConfigError: there are none such, or a choice that they do not have.
        FileError: a folder of images is not laid out as it should be.
    """
    name = asked.data.partition(":")[0]
    if asked.data == "digits":
        if asked.sets:
            raise ConfigError(
                "--sets chooses among several data sets, and digits are one. Leave it out."
            )
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
    usual = {**settings, **own}.get("weights")
    settings |= {**own, **asked.settings, **order.settings, "quick": asked.quick}
    kept = {method: strength for method, strength in strengths.items() if method in methods}
    settings["strengths"] = {**kept, **asked.settings.get("strengths", {})}
    settings["weights"] = _weights(asked.settings.get("weights"), asked.quick, settings, usual)
    if settings["model"] not in SMALL and "image_size" not in asked.settings:
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


def _weights(
    asked: str | None, quick: bool, settings: dict[str, Any], usual: str | None
) -> str | None:
    """The weights to start from; in a quick version untrained ones if there are no others."""
    if asked is not None:
        return None if asked == UNTRAINED else asked
    model = settings["model"]
    if usual != DEFAULT_WEIGHTS or model in SMALL or is_code(model):
        return None
    if not quick:
        return DEFAULT_WEIGHTS
    try:
        named_model(model, default_weights=True)
    except FileError:
        return None
    return DEFAULT_WEIGHTS


def table2(material: Material, asked: Asked) -> Study:
    """Every method that the paper compares on sequences of two tasks."""
    orders = material.pairs()
    parts = [
        Part(order.name, setting(material, asked, order, methods=COMPARED))
        for order in orders.found
    ]
    return study_of(
        "table2", "Table 2: two tasks in a row", material, asked, parts=parts, orders=orders
    )


def table3(material: Material, asked: Asked) -> Study:
    """MAS and l-MAS with Ω on the training data, the test data and both."""
    orders = material.pairs()
    own = {"methods": SENSITIVE, "importance_on": DATA}
    parts = [Part(order.name, setting(material, asked, order, **own)) for order in orders.found]
    title = "Table 3: which data Ω is computed on"
    return study_of("table3", title, material, asked, parts=parts, orders=orders)


def sequence(material: Material, asked: Asked) -> Study:
    """Every method that the paper compares on all tasks in one order."""
    orders = material.long()
    methods = QUICK if asked.quick else COMPARED
    parts = [
        Part(order.name, setting(material, asked, order, methods=methods)) for order in orders.found
    ]
    return study_of("sequence", "The long sequence", material, asked, parts=parts, orders=orders)


def memory(material: Material, asked: Asked) -> Study:
    """What every method keeps after each task, measured in runs as short as possible."""
    orders = material.long()
    little = {**LITTLE, "methods": KEEPING, **({} if material.stand_in else LITTLE_OF_IMAGES)}
    parts = [Part(order.name, setting(material, asked, order, **little)) for order in orders.found]
    title = "What each method keeps"
    return study_of("memory", title, material, asked, parts=parts, orders=orders, departures=())


def adaptation(material: Material, asked: Asked) -> Study:
    """Fine-tuning, MAS with Ω on the whole first task, and with Ω on some of its classes.

    Raises:
        ConfigError: a class that the first task does not have, or all of its classes.
    """
    orders = material.pairs()
    orders = Orders(orders.found[:1], {} if orders.found else orders.skipped, orders.altered)
    parts: list[Part] = []
    chosen: tuple[str, ...] = ()
    for order in orders.found:
        chosen = _chosen(asked.adapt_to, order)
        weak = {"mas": ADAPTING_STRENGTH} if material.data == "digits" else {}
        own = {"seeds": ADAPTING_SEEDS, "strengths": weak}
        if asked.quick:
            own["seeds"] = material.quick.get("seeds", ADAPTING_SEEDS)
        whole = setting(material, asked, order, methods=("finetune", "mas"), **own)
        some = setting(material, asked, order, methods=("mas",), importance_classes=chosen, **own)
        parts = [
            Part(f"{order.name}, Ω on all classes", whole),
            Part(f"{order.name}, Ω on {', '.join(chosen)}", some),
        ]
    title = "Adapting Ω to what is used"
    return study_of(
        "adaptation", title, material, asked, parts=parts, orders=orders, adapt_to=chosen
    )


def _chosen(asked: tuple[str, ...], order: Order) -> tuple[str, ...]:
    """The classes that matter: those asked for, or else the first half of them."""
    known = order.first_classes()
    if not asked:
        return known[: len(known) // 2]
    strange = [name for name in asked if name not in known]
    if strange:
        hints = "".join(did_you_mean(name, known) for name in strange)
        listed = ", ".join(known[:LISTED]) + (", …" if len(known) > LISTED else "")
        raise ConfigError(
            f"--adapt-to names {', '.join(map(repr, strange))}, but the first task of "
            f"{order.name} has no such class.{hints} Its classes: {listed}."
        )
    if set(asked) == set(known):
        raise ConfigError(
            f"--adapt-to names all {len(known)} classes of the first task of {order.name}, so "
            "nothing is left to be given up. Name some of them."
        )
    return tuple(dict.fromkeys(asked))


STUDIES: dict[str, Callable[[Material, Asked], Study]] = {
    study.__name__: study for study in (table2, table3, sequence, memory, adaptation)
}


def study_named(name: str, asked: Asked) -> Study:
    """The study of that name, as it was asked for.

    Raises:
        ConfigError: there is none, or it cannot be carried out.
        FileError: data that cannot be read.
    """
    arguments.text("name", name)
    arguments.instance("asked", asked, Asked, "retain.studies.Asked(data=…)")
    if name not in STUDIES:
        raise ConfigError(unknown("study", name, STUDIES))
    if asked.adapt_to and name != "adaptation":
        raise ConfigError(
            f"--adapt-to is for the study adaptation; {name} has no use for it. Leave it out."
        )
    return STUDIES[name](material_of(asked), asked)
