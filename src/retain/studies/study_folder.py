"""The folder of a study: what it is, the results of each part, and all of them in one file.

DIR/study.json                  the study, with the config of every part
DIR/parts/birds-scenes/         the folder of a run: its results.json and checkpoints
DIR/results.json                the runs of all parts, which the report is made from
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retain import arguments, atomic
from retain.errors import ConfigError, FileError
from retain.experiment import Results
from retain.experiment.checks import loaded
from retain.experiment.content import FILE, SCHEMA, Content
from retain.experiment.disk import signed
from retain.experiment.run_folder import STUDY
from retain.header import shown
from retain.studies.study import Part, Study

PARTS = "parts"
REMEDY = (
    f"If it was damaged, remove it and {FILE} beside it, and start the study again with the same "
    f"options: what is done under {PARTS}/ is kept."
)


def is_study(folder: Path) -> bool:
    """Whether a study was begun in `folder`."""
    return (folder / STUDY).is_file()


def part_folder(folder: Path, part: Part) -> Path:
    """Where the results of a part are."""
    return folder / PARTS / part.folder


def record(folder: Path, study: Study) -> None:
    """Write what the study is.

    Raises:
        FileError: it cannot be written.
    """
    atomic.write(folder / STUDY, signed({"schema": SCHEMA, **study.to_json()}))


def recorded(folder: Path) -> Study:
    """The study that was begun in `folder`.

    Raises:
        ConfigError: none was.
        FileError: its record cannot be read.
    """
    path = folder / STUDY
    try:
        content = loaded(path, REMEDY)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no study to resume in {folder}. Leave --resume out to start one."
        ) from None
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise FileError(f"{path} has schema {shown(schema)}; this version reads {SCHEMA}. {REMEDY}")
    try:
        return Study.from_json(content)
    except (ConfigError, TypeError) as error:
        raise FileError(f"{path} cannot be used: {error}\n{REMEDY}") from None


def results_of_all(folder: Path, study: Study) -> dict[str, Results]:
    """The results of each part that was begun, as far as they go, by its name.

    Raises:
        FileError: they cannot be read.
    """
    places = {part.name: part_folder(folder, part) for part in study.parts}
    return {name: Results.read(at) for name, at in places.items() if (at / FILE).exists()}


def gather(folder: Path | str) -> Content:
    """Write the results of all parts, as far as they go, into one file; what it says.

    Raises:
        FileError: the results of a part cannot be read, or the file cannot be written.
    """
    folder = arguments.path("folder", folder, of="a folder")
    study = recorded(folder)
    return write_gathered(folder, study, results_of_all(folder, study))


def write_gathered(folder: Path, study: Study, results: Mapping[str, Results]) -> Content:
    """Write the results of parts, which are given by their names, into one file; what it says.

    Raises:
        FileError: the file cannot be written.
    """
    runs = [
        {**run.to_json(), "part": part.name, "importance_classes": _classes(part)}
        for part in study.parts
        if part.name in results
        for run in results[part.name].runs
    ]
    # What a run needs to know of itself stands in its record: here is what all have in common.
    configs = {
        part.name: (results[part.name].config if part.name in results else part.config).to_json()
        for part in study.parts
    }
    config = {
        **_common(configs.values()),
        **study.said(),
        "tasks": f"{study.stand_in}: {_tasks(study)}" if study.stand_in else _tasks(study),
        "waiting": [name for name in configs if name not in results],
        "parts": configs,
    }
    versions = next((results[name].versions for name in configs if name in results), {})
    content = {"schema": SCHEMA, "versions": versions, "config": config, "runs": runs}
    atomic.write(folder / FILE, signed(content))
    return Content.model_validate(content)


def _classes(part: Part) -> list[str]:
    return list(part.config.importance_classes)


def _tasks(study: Study) -> str:
    orders = dict.fromkeys(part.name.partition(",")[0] for part in study.parts)
    return "; ".join(orders)


def _common(configs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The fields that are the same in all configs."""
    first, *others = configs
    return {
        name: value
        for name, value in first.items()
        if all(other.get(name) == value for other in others)
    }
