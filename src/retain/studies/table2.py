"""Table 2: two tasks in a row, and what each method leaves of the first."""

from __future__ import annotations

from retain.studies.asked import Asked
from retain.studies.material import Material
from retain.studies.planning import COMPARED, setting, study_of
from retain.studies.study import Part, Study


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
