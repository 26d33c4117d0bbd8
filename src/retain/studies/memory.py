"""The memory figure: the bytes that each method keeps at each step of the long sequence."""

from __future__ import annotations

from typing import Any

from retain.studies.asked import Asked
from retain.studies.material import Material
from retain.studies.planning import COMPARED, setting, study_of
from retain.studies.study import Part, Study

METHODS = (*COMPARED[:6], "online-ewc", *COMPARED[6:], "local-mas")
# Bytes depend on the network and on the classes, not on how long or how well it is trained.
LITTLE: dict[str, Any] = {"epochs": 1, "seeds": (0,)}
LITTLE_OF_IMAGES: dict[str, Any] = {"samples_per_class": 2, "batch_size": 4, "weights": None}


def memory(material: Material, asked: Asked) -> Study:
    """What every method keeps after each task, measured in runs as short as possible."""
    orders = material.long()
    little = {**LITTLE, "methods": METHODS, **({} if material.stand_in else LITTLE_OF_IMAGES)}
    parts = [Part(order.name, setting(material, asked, order, **little)) for order in orders.found]
    title = "What each method keeps"
    return study_of("memory", title, material, asked, parts=parts, orders=orders, departures=())
