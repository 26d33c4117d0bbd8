"""What a results.json says, checked: the one reader of such files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, GetPydanticSchema, ValidationError
from typing_extensions import TypedDict

from retain.errors import FileError
from retain.experiment.checks import Whole, listed, loaded, problems, told
from retain.experiment.config import Config
from retain.experiment.record import QUANTILES, RECORDED, Record
from retain.header import shown

SCHEMA: Literal[1] = 1
FILE = "results.json"
AGREE = 1e-4  # how far a stored mean may be from the matrix it was taken from
REMEDY = (
    "Copy it again, or remove it: what it held can be computed again with the same command, and "
    "comes out the same."
)


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
    return content_at(path / FILE if path.is_dir() else path)


def content_at(path: Path) -> Content:
    """What the file at `path` says.

    Raises:
        FileError: as `read_content`.
    """
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
