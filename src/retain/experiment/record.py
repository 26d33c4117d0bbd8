"""What is recorded of one method on one sequence of tasks with one seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from retain.experiment import metrics
from retain.experiment.checks import Fraction, Whole, Word

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)  # of the elements of Ω
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
            >>> from retain.experiment import Run
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
