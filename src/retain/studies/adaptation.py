"""Adaptation: Ω on all of an old task's data, or only on those classes of it that matter."""

from __future__ import annotations

from retain.closest import did_you_mean
from retain.errors import ConfigError
from retain.studies.asked import Asked
from retain.studies.material import Material, Order, Orders
from retain.studies.planning import setting, study_of
from retain.studies.study import Part, Study

SEEDS = (0, 1, 2, 3, 4)
# Digits: so weak that something is forgotten, and there is something to choose.
DIGITS_STRENGTH = 0.003
LISTED = 20


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
        weak = {"mas": DIGITS_STRENGTH} if material.data == "digits" else {}
        own = {"seeds": SEEDS, "strengths": weak}
        if asked.quick:
            own["seeds"] = material.quick.get("seeds", SEEDS)
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
    unknown = [name for name in asked if name not in known]
    if unknown:
        hints = "".join(did_you_mean(name, known) for name in unknown)
        listed = ", ".join(known[:LISTED]) + (", …" if len(known) > LISTED else "")
        raise ConfigError(
            f"--adapt-to names {', '.join(map(repr, unknown))}, but the first task of "
            f"{order.name} has no such class.{hints} Its classes: {listed}."
        )
    if set(asked) == set(known):
        raise ConfigError(
            f"--adapt-to names all {len(known)} classes of the first task of {order.name}, so "
            "nothing is left to be given up. Name some of them."
        )
    return tuple(dict.fromkeys(asked))
