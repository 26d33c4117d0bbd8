"""The long sequence: all tasks one after another."""

from __future__ import annotations

from retain.studies.asked import Asked
from retain.studies.material import Material
from retain.studies.planning import COMPARED, setting, study_of
from retain.studies.study import Part, Study

# One of each kind: of a long sequence of large networks others keep many copies.
QUICK = ("finetune", "lwf", "si", "mas")


def sequence(material: Material, asked: Asked) -> Study:
    """Every method that the paper compares on all tasks in one order."""
    orders = material.long()
    methods = QUICK if asked.quick else COMPARED
    parts = [
        Part(order.name, setting(material, asked, order, methods=methods)) for order in orders.found
    ]
    return study_of("sequence", "The long sequence", material, asked, parts=parts, orders=orders)
