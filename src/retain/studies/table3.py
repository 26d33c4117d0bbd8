"""Table 3: which data Ω is computed on, never with a label."""

from __future__ import annotations

from retain.studies.asked import Asked
from retain.studies.material import Material
from retain.studies.planning import setting, study_of
from retain.studies.study import Part, Study

METHODS = ("mas", "local-mas")
DATA = ("train", "test", "train+test")


def table3(material: Material, asked: Asked) -> Study:
    """MAS and l-MAS with Ω on the training data, the test data and both."""
    orders = material.pairs()
    own = {"methods": METHODS, "importance_on": DATA}
    parts = [Part(order.name, setting(material, asked, order, **own)) for order in orders.found]
    title = "Table 3: which data Ω is computed on"
    return study_of("table3", title, material, asked, parts=parts, orders=orders)
