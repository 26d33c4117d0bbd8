"""What a run ends in, results.json, and its one reader, for whoever goes on with it or shows it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, ValidationError
from typing_extensions import TypedDict

from retain import __version__, atomic
from retain.errors import ConfigError, FileError, InputError
from retain.experiment import metrics
from retain.experiment.checks import Fraction, Whole, Word, listed, loaded, problems, shown, told
from retain.experiment.config import Config
from retain.experiment.disk import signed

SCHEMA: Literal[1] = 1
FILE = "results.json"
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)  # of the elements of Ω
AGREE = 1e-4  # how far a stored mean may be from the matrix it was taken from
REMEDY = (
    "Copy it again, or remove it: what it held can be computed again with the same command, and "
    "comes out the same."
)
RECORDED = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
ByClass = dict[Word, dict[Word, Fraction | None]]
Seconds = Annotated[float, Field(ge=0)]
Element = Annotated[float, Field(ge=0, le=1e300)]  # of Ω; pictures cannot show larger ones


class LayerImportance(TypedDict, total=False):
    """Ω of one parameter: its mean, its share of the total, quantiles of its elements."""

    mean: float | None
    share: float | None
    quantiles: list[Element]


class TriedStrength(TypedDict, total=False):
    """A strength that was tried on a new task, and what it came to on validation data.

    `forgotten` is the share of the old tasks that was expected to be lost with it.
    """

    task: str
    strength: float | None
    accuracy: Fraction | None
    accepted: bool
    forgotten: Fraction | None
    reference: Fraction | None


class Run(BaseModel):
    """One method on one sequence of tasks with one seed; grows by a task at a time.

    Attributes:
        strength: λ; with "auto" the one that was chosen last.
        knob: the value of a sweep over the method's knob, where that is not λ.
        accuracy: `R[i][j]` on task j after learning task i, in [0, 1]; None where j > i.
        accuracy_by_class: {task: {class: accuracy}} at the end, of tasks of up to 200 classes.
        accuracy_by_class_learned: the same of each task right after it was learned.
        before: accuracy on each task before it was learned, with its new head.
        at_random: the same on a network with its first weights.
        memory_bytes_by_task: bytes kept after each task, by kind.
        importance_by_layer: for each parameter the mean of Ω, its share of the total, quantiles.
        strength_search: what was tried where λ was chosen.

    Examples:
        >>> run = results.of("mas")[0]  # a Run
        >>> run.tasks, run.status
        (['0-1', '2-3', '4-5', '6-7', '8-9'], 'done')
    """

    model_config = RECORDED

    method: Word
    seed: Whole
    strength: float | None = None
    form: str | None = None
    importance_on: str | None = None
    knob: float | None = None
    tasks: list[Word]
    status: Literal["running", "done", "failed"] = "running"
    error: str | None = None
    accuracy: list[list[Fraction | None]] = Field(default_factory=list)
    accuracy_by_class: ByClass = Field(default_factory=dict)
    accuracy_by_class_learned: ByClass = Field(default_factory=dict)
    before: list[Fraction] = Field(default_factory=list)
    at_random: list[Fraction] = Field(default_factory=list)
    train_seconds: Seconds = 0.0
    importance_seconds: Seconds = 0.0
    evaluation_seconds: Seconds = 0.0
    memory_bytes_by_task: list[dict[str, Whole]] = Field(default_factory=list)
    importance_by_layer: dict[str, LayerImportance] | None = None
    strength_search: list[TriedStrength] | None = None

    @property
    def complete(self) -> bool:
        """Whether every task was learned and measured.

        Examples:
            >>> all(run.complete for run in results.runs)
            True
        """
        return len(self.accuracy) == len(self.tasks)

    def measures(self) -> dict[str, float | None]:
        """The metrics of a complete run by name; all None as long as it is not.

        Examples:
            >>> run = results.of("mas")[0]
            >>> 0 < run.measures()["average_accuracy"] <= 1
            True
        """
        if not self.complete:
            return dict.fromkeys(MEASURES)
        return {name: measure(self) for name, measure in MEASURES.items()}

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in results.json.

        Examples:
            >>> results.of("mas")[0].to_json()["method"]
            'mas'
        """
        plain = self.model_dump(include=OF_RUN)
        last = self.memory_bytes_by_task[-1] if self.memory_bytes_by_task else {}
        return {**plain, **self.measures(), "memory_bytes": last}

    @classmethod
    def from_json(cls, content: Any) -> Run:
        """The record that `to_json` came from; what can be computed is computed again.

        Raises:
            ValueError: it is none.

        Examples:
            >>> from retain.experiment.results import Run
            >>> run = results.of("mas")[0]
            >>> Run.from_json(run.to_json()) == run
            True
        """
        return cls.model_validate(content)


OF_RUN = set(Run.model_fields)
MEASURES: dict[str, Callable[[Run], float | None]] = {
    "average_accuracy": lambda run: metrics.average_accuracy(run.accuracy),
    "average_forgetting": lambda run: metrics.average_forgetting(run.accuracy),
    "backward_transfer": lambda run: metrics.backward_transfer(run.accuracy),
    "forward_transfer": lambda run: metrics.forward_transfer(run.before, run.at_random),
    "plasticity": lambda run: metrics.plasticity(run.accuracy),
}


# ---- the file ----


class Record(Run):
    """A run as it stands in results.json, which a study and other programs may write as well.

    Attributes:
        importance_classes: the classes that Ω was computed on; () is all.
        memory_bytes: the last of `memory_bytes_by_task`.
    """

    status: Literal["running", "done", "failed"] = "done"
    train_seconds: Seconds | None = None  # type: ignore[assignment]
    importance_seconds: Seconds | None = None  # type: ignore[assignment]
    evaluation_seconds: Seconds | None = None  # type: ignore[assignment]
    accuracy: list[list[Fraction | None]]
    accuracy_by_class: ByClass | None = None  # type: ignore[assignment]
    accuracy_by_class_learned: ByClass | None = None  # type: ignore[assignment]
    memory_bytes_by_task: list[dict[str, Whole]] | None = None  # type: ignore[assignment]
    importance_classes: list[Word] | None = None
    memory_bytes: dict[str, Whole] | None = None
    average_accuracy: float | None = None
    average_forgetting: float | None = None
    backward_transfer: float | None = None
    forward_transfer: float | None = None
    plasticity: float | None = None

    @classmethod
    def of(cls, run: Run) -> Record:
        """The record of a run."""
        return cls(**run.to_json())

    def as_run(self) -> Run:
        """The run that it is the record of."""
        known = {name: getattr(self, name) for name in OF_RUN}
        return Run(**{name: value for name, value in known.items() if value is not None})


def _on_file(kind: Any) -> Any:
    """What JSON makes of an option's type: of a tuple a list, of a choice of words one."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return str
    if origin is tuple:
        return list[_on_file(inside[0])]  # type: ignore[misc]
    if origin is Annotated or type(None) in inside:
        return _on_file(inside[0])
    return Whole if kind is int else kind


class StudyOnFile(TypedDict, total=False):
    """What the results.json of a study says in its config beside the options of its runs."""

    study: str | None
    stand_in: str | None
    splits: str | None
    sample: str | None
    sweeps: dict[str, list[float]] | None
    departures: list[str] | None
    adapt_to: list[str] | None
    waiting: list[str] | None
    skipped: dict[str, str] | None
    altered: dict[str, str] | None


# The options of a run that a reader of the file looks at; whatever else there is stays as it is.
LOOKED_AT = (
    "title", "tasks", "model", "scenario", "optimizer", "device", "weights", "augmentation", "lr",
    "epochs", "batch_size", "image_size", "samples_per_class", "methods", "seeds",
)  # fmt: skip
_OPTIONS = {name: vars(Config)["__pydantic_fields__"][name].annotation for name in LOOKED_AT}
ConfigOnFile: Any = TypedDict(  # type: ignore[misc]
    "ConfigOnFile",
    {name: _on_file(kind) | None for name, kind in _OPTIONS.items()} | get_type_hints(StudyOnFile),
    total=False,
)
ConfigOnFile.__pydantic_config__ = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)  # type: ignore[attr-defined]


class Content(BaseModel):
    """What a results.json says.

    Attributes:
        versions: what the numbers were made with.
        config: what was asked for.
        runs: a record for each method, strength and seed.
    """

    model_config = RECORDED

    versions: dict[str, str]
    config: Annotated[
        dict[str, Any], GetPydanticSchema(lambda _, schema_of: schema_of(ConfigOnFile))
    ]
    runs: list[Record]


def read_content(results: Mapping[str, Any] | Path | str) -> Content:
    """What a results.json says, checked: given as its content, the file, or the folder it is in.

    Raises:
        FileError: the file is missing, cannot be opened, is cut off or from a newer schema, or does
            not hold what its schema promises; every problem that was found is listed.
    """
    if isinstance(results, Mapping):
        return _checked(results, "What was given")
    path = Path(results)
    return _at(path / FILE if path.is_dir() else path)


def _at(path: Path) -> Content:
    try:
        return _checked(loaded(path, REMEDY), str(path))
    except FileNotFoundError:
        raise FileError(
            f"There is no {path}. Give the folder that `retain run --out` wrote, "
            f"or the {FILE} inside it."
        ) from None


def _checked(content: Any, source: str) -> Content:
    if not isinstance(content, Mapping):
        raise FileError(
            f"{source} holds a {type(content).__name__}, but a {FILE} is an object with "
            "schema, versions, config and runs. Is it the right file?"
        )
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise FileError(
            f"{source} has schema {shown(schema)}, but this version of retain reads schemas up to "
            f"{SCHEMA}. Upgrade with `pip install -U retain`."
        )
    found: list[str] = []
    if schema != SCHEMA or isinstance(schema, bool):
        found.append(f"schema should be {SCHEMA}, but {told(schema)}")
    checked = None
    try:
        checked = Content.model_validate(dict(content))
    except ValidationError as error:
        found += problems(error)
    if checked is not None:
        for number, record in enumerate(checked.runs):
            found += (f"runs[{number}].{problem}" for problem in _disagreements(record))
    if found or checked is None:
        raise FileError(
            f"{source} is not a valid {FILE} of schema {SCHEMA}. Was it edited by hand? "
            f"{REMEDY}{listed(found)}"
        )
    return checked


def _disagreements(record: Record) -> Iterator[str]:
    """Where a matrix does not fit its tasks, and stored means are not those of the matrix."""
    tasks = len(record.tasks)
    for i, row in enumerate(record.accuracy):
        if len(row) > tasks or i >= tasks:
            yield f"accuracy[{i}] does not fit a run of {tasks} tasks"
        if any(value is not None for value in row[i + 1 :]):
            yield f"accuracy[{i}] has accuracies on tasks that were not learned yet"
    for name, layer in (record.importance_by_layer or {}).items():
        given = len(layer.get("quantiles") or [])
        if given not in (0, len(QUANTILES)):
            yield (
                f"importance_by_layer.{name}.quantiles should be {len(QUANTILES)}, but are {given}"
            )
    if record.status == "done":
        yield from _wrong_means(record, tasks)


def _wrong_means(record: Record, tasks: int) -> Iterator[str]:
    accuracy = record.accuracy
    last = accuracy[-1] if len(accuracy) == tasks and tasks else []
    final = [value for value in last if value is not None]
    if len(final) != tasks or not tasks:
        yield f"accuracy should end with the accuracies on all {tasks} tasks"
        return
    expected = {"average_accuracy": sum(final) / tasks}
    # Forgetting of task j: the best accuracy before the last task − the final one.
    best = [
        [row[j] for row in accuracy[j:-1] if j < len(row) and row[j] is not None]
        for j in range(tasks - 1)
    ]
    if best and all(best):
        kept = [max(value for value in column if value is not None) for column in best]
        expected["average_forgetting"] = sum(b - f for b, f in zip(kept, final)) / (tasks - 1)
    for name, value in expected.items():
        stored = getattr(record, name)
        if stored is None and name == "average_accuracy":
            yield f"{name} is missing"
        elif stored is not None and not abs(stored - value) <= AGREE:
            yield f"{name} is {stored:.4g}, but its accuracy matrix gives {value:.4g}"


# ---- all of it ----


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
        content = _at(path)
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
