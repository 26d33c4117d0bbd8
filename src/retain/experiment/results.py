"""What a run ends in: every record of it, to results.json and back."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retain import __version__, atomic
from retain.errors import ConfigError, FileError, InputError
from retain.experiment import metrics
from retain.experiment.config import Config
from retain.experiment.content import FILE, REMEDY, SCHEMA, Content, content_at
from retain.experiment.disk import signed
from retain.experiment.record import Record, Run


def _versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "retain": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


@dataclass
class Results:
    """Everything that a run found out so far.

    Examples:
        >>> from pathlib import Path
        >>> from retain.experiment import Config, Results, run
        >>> few = {"epochs": 1, "batch_size": 32, "seeds": (0, 1)}
        >>> results = run(Config("digits", **few), progress=False)
        >>> mean, sd = results.mean_sd("mas", "average_accuracy")
        >>> results.compare("mas", "finetune").seeds, len(results.of("mas"))
        (2, 2)
        >>> results.to_json()["schema"], len(results.content().runs)
        (1, 4)
        >>> Path("out").mkdir()
        >>> len(Results.read(results.write(Path("out")).parent).runs)
        4
    """

    config: Config
    runs: list[Run] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=_versions)

    def of(self, method: str) -> list[Run]:
        """The complete runs of a method, by seed and strength.

        Examples:
            >>> [run.seed for run in results.of("mas")]
            [0, 1]
        """
        return [run for run in self.runs if run.method == method and run.complete]

    def mean_sd(self, method: str, measure: str) -> tuple[float, float | None]:
        """Mean and standard deviation (n − 1; None for one seed) of a measure over the seeds.

        Raises:
            InputError: nothing was measured, or for several strengths, forms or data for Ω.

        Examples:
            >>> mean, sd = results.mean_sd("mas", "average_accuracy")
            >>> 0 < mean <= 1
            True
        """
        found = metrics.Spread.of(self._by_seed(method, measure).values())
        if found is None:
            raise InputError(f"The runs of {method!r} have no {measure}, as with a single task.")
        return found.mean, found.sd

    def compare(
        self, first: str, second: str, measure: str = "average_accuracy"
    ) -> metrics.Comparison:
        """A paired comparison of two methods over the seeds that both have.

        Raises:
            InputError: fewer than two seeds in common, or several variants of a method.

        Examples:
            >>> found = results.compare("mas", "finetune")
            >>> found.low <= found.difference <= found.high
            True
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

    def content(self) -> Content:
        """What its results.json says, for the report: nothing has to be read for it.

        Examples:
            >>> [(record.method, record.seed) for record in results.content().runs]
            [('finetune', 0), ('mas', 0), ('finetune', 1), ('mas', 1)]
        """
        config = self.config.to_json()
        runs = [Record.of(run) for run in self.runs]
        return Content(versions=self.versions, config=config, runs=runs)

    def to_json(self) -> dict[str, Any]:
        """The content of results.json.

        Examples:
            >>> sorted(results.to_json())
            ['config', 'runs', 'schema', 'versions']
        """
        return {
            "schema": SCHEMA,
            "versions": self.versions,
            "config": self.config.to_json(),
            "runs": [run.to_json() for run in self.runs],
        }

    def write(self, folder: Path) -> Path:
        """Write `folder`/results.json atomically; the path of it.

        Examples:
            >>> from pathlib import Path
            >>> folder = Path("out")
            >>> folder.mkdir()
            >>> results.write(folder).name
            'results.json'
        """
        path = folder / FILE
        atomic.write(path, signed(self.to_json()))
        return path

    @classmethod
    def read(cls, folder: Path) -> Results:
        """The results in `folder`.

        Raises:
            FileError: there are none, or the file is not one that this version has written.

        Examples:
            >>> from pathlib import Path
            >>> from retain.experiment import Config, Results, run
            >>> config = Config("digits", epochs=1, methods=("finetune",))
            >>> done = run(config, out="out", progress=False)
            >>> Results.read(Path("out")).runs == done.runs
            True
        """
        path = folder / FILE
        content = content_at(path)
        study = content.config.get("study")
        if study is not None:
            raise FileError(
                f"{path} holds the study {study}, which is more than one run. Continue it with: "
                f"retain study {study} --resume --out {folder}"
            )
        try:
            config = Config.from_json(content.config)
        except (ConfigError, TypeError) as error:
            raise FileError(f"{path} is not the results of a run: {error} {REMEDY}") from None
        return cls(config, [record.as_run() for record in content.runs], content.versions)
