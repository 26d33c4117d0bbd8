"""The jobs of a run: one for each method, λ, form, knob and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from retain.experiment.config import Config, Strength
from retain.experiment.record import Run
from retain.methods import METHODS, Form, ImportanceData, options_of


@dataclass(frozen=True)
class Job:
    """One line of the results. What does not apply to the method is None."""

    method: str
    strength: Strength | None
    form: Form | None
    importance_on: ImportanceData | None
    seed: int
    knob: float | None = None  # the value of a sweep over something other than λ

    @property
    def label(self) -> str:
        """What the job is called on the screen and in the names of its files."""
        parts = [self.method, self.form, self.importance_on, f"seed{self.seed}"]
        parts[1:1] = [str(value) for value in (self.strength, self.knob) if value is not None]
        return "-".join(part for part in parts if part)

    def is_of(self, run: Run) -> bool:
        """Whether a record may be of this job."""
        mine = (self.method, self.seed, self.form, self.importance_on, self.knob)
        strength = self.strength if isinstance(self.strength, float) else run.strength
        same = (run.method, run.seed, run.form, run.importance_on, run.knob) == mine
        return same and run.strength == strength

    def begun(self, tasks: Sequence[str]) -> Run:
        """The record of the job when it begins."""
        return Run(
            method=self.method,
            seed=self.seed,
            strength=self.strength if isinstance(self.strength, float) else None,
            form=self.form,
            importance_on=self.importance_on,
            knob=self.knob,
            tasks=list(tasks),
        )


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
    knobs = config.sweeps.get(method, (None,))
    for strength, form, on, knob in product(strengths, forms, data, knobs):
        yield Job(method, strength, form, on, seed, knob)
