"""What a config and its tasks do not have in common, found before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

from retain.closest import did_you_mean
from retain.errors import ConfigError
from retain.experiment.config import Config
from retain.tasks import TaskSequence

LISTED = 20


def refuse_what_does_not_fit(config: Config, sequence: TaskSequence) -> None:
    """Raise for everything in `config` that cannot be done with these tasks.

    Raises:
        ConfigError: a task has fewer samples than a batch, or no task has a class of that name.
    """
    problems = [*_small_tasks(config, sequence), *_unknown_classes(config, sequence)]
    if problems:
        raise ConfigError(" ".join(problems))


def _small_tasks(config: Config, sequence: TaskSequence) -> Iterator[str]:
    size = config.batch_size
    small = [f"{t.name!r} has {len(t.train)}" for t in sequence.tasks if len(t.train) < size]
    if small:
        yield (
            f"Fewer training samples than a batch of {size}: {', '.join(small)}. "
            "Give a smaller batch size or more samples."
        )


def _unknown_classes(config: Config, sequence: TaskSequence) -> Iterator[str]:
    known = sorted({name for task in sequence.tasks for name in task.classes})
    for name in config.importance_classes:
        if name not in known:
            listed = ", ".join(known[:LISTED]) + (", …" if len(known) > LISTED else "")
            yield (
                f"importance_classes has {name!r}, which is no class of these tasks."
                f"{did_you_mean(name, known)} Their classes: {listed}."
            )
