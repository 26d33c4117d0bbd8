"""The demonstration: five two-class tasks of real handwritten digits, every method, three seeds."""

from __future__ import annotations

from retain.experiment.config import Config
from retain.methods import PAPER

TITLE = "retain demo"
SEEDS = 3


def demo(seed: int = 0) -> Config:
    """The demonstration's config, with seeds from `seed` on.

    A setting in which fine-tuning forgets tens of points: many large steps of SGD per task.
    """
    return Config(
        tasks="digits",
        model="mlp",
        methods=PAPER,
        seeds=tuple(range(seed, seed + SEEDS)),
        epochs=20,
        batch_size=16,
        lr=0.1,
        optimizer="sgd",
        title=TITLE,
    )
