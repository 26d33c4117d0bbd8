"""What a results.json says, as the report's own values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retain import experiment
from retain.experiment.checks import visible
from retain.experiment.results import FILE, Content, Record, read_content
from retain.report.naming import in_sequences
from retain.report.results import Results, Run

MEASURES = (
    "average_accuracy",
    "average_forgetting",
    "backward_transfer",
    "forward_transfer",
    "plasticity",
    "train_seconds",
    "importance_seconds",
    "evaluation_seconds",
)
Source = experiment.Results | Content | Mapping[str, Any] | Path | str


def read(results: Source) -> Results:
    """What was found out: held by a run, or the content of a results.json, the file, its folder.

    Raises:
        FileError: the file is missing, truncated or from a newer schema, or does not hold
            what its schema promises; every problem that was found is listed.
    """
    if isinstance(results, experiment.Results):
        return _shown(results.content(), FILE)
    if isinstance(results, Content):
        return _shown(results, FILE)
    content = read_content(results)
    if isinstance(results, Mapping):
        return _shown(content, "these results")
    path = Path(results)
    return _shown(content, str(path / FILE if path.is_dir() else path))


def _shown(content: Content, source: str) -> Results:
    # Here, once, for page, pictures and terminal: every text is one that can be written and seen.
    content = Content.model_validate(_legible(content.model_dump()))
    source = visible(source)
    runs = tuple(_run(record) for record in content.runs)
    return Results(source, content.versions, content.config, runs, in_sequences(runs))


def _legible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {_legible(key): _legible(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_legible(item) for item in value]
    return value


def _run(record: Record) -> Run:
    measures = {name: getattr(record, name) for name in MEASURES}
    only_last = [record.memory_bytes] if record.memory_bytes else []
    by_task = record.memory_bytes_by_task
    return Run(
        method=record.method,
        seed=record.seed,
        tasks=tuple(record.tasks),
        accuracy=tuple(tuple(row) for row in record.accuracy),
        status=record.status,
        error=record.error,
        strength=record.strength,
        knob=record.knob,
        form=record.form,
        importance_on=record.importance_on,
        importance_classes=tuple(record.importance_classes or ()),
        measures={name: value for name, value in measures.items() if value is not None},
        memory=tuple(only_last if by_task is None else by_task),
        layers={name: _layer(layer) for name, layer in (record.importance_by_layer or {}).items()},
        search=tuple(
            {"strength": None, "accuracy": None, **step} for step in record.strength_search or ()
        ),
        by_class=record.accuracy_by_class or {},
        by_class_learned=record.accuracy_by_class_learned or {},
    )


def _layer(given: Mapping[str, Any]) -> dict[str, Any]:
    """The mean, the share of the total, and seven quantiles where known."""
    return {
        "mean": given.get("mean"),
        "share": given.get("share"),
        "quantiles": given.get("quantiles") or [],
    }
