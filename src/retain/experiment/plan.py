"""From what is asked to single jobs: one method, strength, form, data for Ω, and seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from retain.experiment.config import Config, Strength
from retain.methods import METHODS, Form, ImportanceData, options_of


@dataclass(frozen=True)
class Job:
    """One line of the results. What does not apply to the method is None."""

    method: str
    strength: Strength | None
    form: Form | None
    importance_on: ImportanceData | None
    seed: int

    @property
    def label(self) -> str:
        """What the job is called on the screen and in the names of its files."""
        parts = [self.method, self.form, self.importance_on, f"seed{self.seed}"]
        if self.strength is not None:
            parts.insert(1, str(self.strength))
        return "-".join(part for part in parts if part)


def jobs(config: Config) -> list[Job]:
    """Every job of a config: seed after seed, and within a seed method after method."""
    return [
        job
        for seed in config.seeds
        for method in config.methods
        for job in _of_method(method, seed, config)
    ]


def _of_method(method: str, seed: int, config: Config) -> Iterator[Job]:
    kind = METHODS[method]
    defaults = options_of(method, config.options.get(method, {}))
    strengths: tuple[Strength | None, ...] = (None,)
    if kind.has_strength():
        strengths = config.strengths_of(method) or (float(defaults.strength),)
    forms = (config.forms or (defaults.form,)) if kind.has_form() else (None,)
    data = config.importance_on if kind.chooses_data else (None,)
    for strength in strengths:
        yield from (Job(method, strength, form, on, seed) for form in forms for on in data)
