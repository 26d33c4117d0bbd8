"""The table of docs/reliability.md: `python -m tests.sabotage` tries every way and prints it."""

from __future__ import annotations

import logging
import warnings

from . import memories, models, optimizers, parameters  # noqa: F401  (they register cases)
from .cases import CASES
from .scene import THERE, TOLD


def table(outcomes: dict[str, str]) -> str:
    """Rows of Markdown, a case each."""
    rows = [f"| {case.group} | {case.title} | {outcomes[case.key]} |" for case in CASES]
    return "\n".join(["| what | how | outcome |", "|---|---|---|", *rows])


def summary(outcomes: dict[str, str]) -> str:
    """The sentence above the table."""
    counts = {kind: list(outcomes.values()).count(kind) for kind in (THERE, TOLD)}
    undetected = len(outcomes) - sum(counts.values())
    return (
        f"{len(outcomes)} ways tried: {counts[THERE]} protected, {counts[TOLD]} with a message, "
        f"**{undetected} undetected**."
    )


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    tried = {case.key: case.outcome() for case in CASES}
    print(summary(tried), table(tried), sep="\n\n")
