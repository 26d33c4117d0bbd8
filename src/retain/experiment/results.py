"""What a run ends in: one record per method, strength and seed, and the file that holds them."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import torch

from retain.errors import FileError, InputError
from retain.experiment import metrics
from retain.experiment.config import Config
from retain.experiment.plan import Job
from retain.experiment.writing import write_atomically

SCHEMA = 1
FILE = "results.json"
ByClass = dict[str, dict[str, float | None]]


@dataclass
class Run:
    """One method on one sequence of tasks with one seed; grows by a task at a time.

    Attributes:
        strength: λ; with "auto" the one that was chosen last.
        accuracy: R[i][j] on task j after learning task i, in [0, 1]; None where j > i.
        accuracy_by_class: {task: {class: accuracy}} at the end, of tasks of up to 200 classes.
        accuracy_by_class_learned: the same of each task right after it was learned.
        before: accuracy on each task before it was learned, with its new head.
        at_random: the same on a network with its first weights.
        memory_bytes_by_task: bytes kept after each task, by kind.
        importance_by_layer: for each parameter the mean of Ω, its share of the total, quantiles.
        strength_search: what was tried where λ was chosen.
    """

    method: str
    seed: int
    strength: float | None
    form: str | None
    importance_on: str | None
    tasks: list[str]
    status: Literal["running", "done", "failed"] = "running"
    error: str | None = None
    accuracy: list[list[float | None]] = field(default_factory=list)
    accuracy_by_class: ByClass = field(default_factory=dict)
    accuracy_by_class_learned: ByClass = field(default_factory=dict)
    before: list[float] = field(default_factory=list)
    at_random: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    importance_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    memory_bytes_by_task: list[dict[str, int]] = field(default_factory=list)
    importance_by_layer: dict[str, Any] | None = None
    strength_search: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, job: Job, tasks: Sequence[str]) -> Run:
        """The record of a job that begins."""
        strength = job.strength if isinstance(job.strength, float) else None
        return cls(job.method, job.seed, strength, job.form, job.importance_on, list(tasks))

    @property
    def complete(self) -> bool:
        """Whether every task was learned and measured."""
        return len(self.accuracy) == len(self.tasks)

    def measures(self) -> dict[str, float | None]:
        """The metrics of a complete run by name; all None as long as it is not."""
        if not self.complete:
            return dict.fromkeys(MEASURES)
        return {name: measure(self) for name, measure in MEASURES.items()}

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in results.json."""
        plain = dataclasses.asdict(self)
        last = self.memory_bytes_by_task[-1] if self.memory_bytes_by_task else {}
        return {**plain, **self.measures(), "memory_bytes": last}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Run:
        """The record that `to_json` came from; what can be computed is computed again."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})


MEASURES: dict[str, Callable[[Run], float | None]] = {
    "average_accuracy": lambda run: metrics.average_accuracy(run.accuracy),
    "average_forgetting": lambda run: metrics.average_forgetting(run.accuracy),
    "backward_transfer": lambda run: metrics.backward_transfer(run.accuracy),
    "forward_transfer": lambda run: metrics.forward_transfer(run.before, run.at_random),
    "plasticity": lambda run: metrics.plasticity(run.accuracy),
}


def _versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "retain": version("retain"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


@dataclass
class Results:
    """Everything that a run found out so far."""

    config: Config
    runs: list[Run] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=_versions)

    def of(self, method: str) -> list[Run]:
        """The complete runs of a method, by seed and strength."""
        return [run for run in self.runs if run.method == method and run.complete]

    def mean_sd(self, method: str, measure: str) -> tuple[float, float | None]:
        """Mean and standard deviation (n − 1; None for one seed) of a measure over the seeds.

        Raises:
            InputError: nothing was measured, or for several strengths, forms or data for Ω.
        """
        values = list(self._by_seed(method, measure).values())
        return fmean(values), stdev(values) if len(values) > 1 else None

    def compare(
        self, first: str, second: str, measure: str = "average_accuracy"
    ) -> metrics.Comparison:
        """A paired comparison of two methods over the seeds that both have.

        Raises:
            InputError: fewer than two seeds in common, or several variants of a method.
        """
        a, b = self._by_seed(first, measure), self._by_seed(second, measure)
        seeds = sorted(a.keys() & b.keys())
        return metrics.compare([a[s] for s in seeds], [b[s] for s in seeds])

    def _by_seed(self, method: str, measure: str) -> dict[int, float]:
        runs = self.of(method)
        if not runs or len({run.seed for run in runs}) < len(runs):
            found = "none" if not runs else "several per seed, as in a sweep"
            raise InputError(f"Expected one complete run of {method!r} per seed; found {found}.")
        values = {run.seed: run.measures()[measure] for run in runs}
        return {seed: value for seed, value in values.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "schema": SCHEMA,
            "versions": self.versions,
            "config": self.config.to_json(),
            "runs": [run.to_json() for run in self.runs],
        }

    def write(self, folder: Path) -> Path:
        """Write `folder`/results.json atomically; the path of it."""
        path = folder / FILE
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text.encode())
        return path

    @classmethod
    def read(cls, folder: Path) -> Results:
        """The results in `folder`.

        Raises:
            FileError: there are none, or the file is not one that this version has written.
        """
        path = folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise FileError(
                    f"{path} has schema {content['schema']}; this version of retain reads {SCHEMA}."
                )
            if "study" in content["config"]:
                study = content["config"]["study"]
                raise FileError(
                    f"{path} holds the study {study}, which is more than one run. Go on with it "
                    f"with: retain study {study} --resume --out {folder}"
                )
            config = Config.from_json(content["config"])
            runs = [Run.from_json(run) for run in content["runs"]]
        except FileNotFoundError:
            raise FileError(f"There is no {path}, so there is no run to go on with.") from None
        except FileError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(
                f"{path} is not the results of a run: {str(error).rstrip('.')}. If it was damaged, "
                "remove it: what it held can be computed again, and comes out the same."
            ) from None
        return cls(config, runs, dict(content["versions"]))
