"""The folder of a study: what it is, the results of each part, and all of them in one file.

DIR/study.json                  the study, with the config of every part
DIR/parts/birds-scenes/         the folder of a run: its results.json and checkpoints
DIR/results.json                the runs of all parts, which the report is made from
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retain.errors import ConfigError, FileError
from retain.experiment import Results
from retain.experiment.results import FILE, SCHEMA
from retain.experiment.writing import write_atomically
from retain.studies.study import Part, Study

STUDY = "study.json"
PARTS = "parts"


def is_study(folder: Path) -> bool:
    """Whether a study was begun in `folder`."""
    return (folder / STUDY).is_file()


def part_folder(folder: Path, part: Part) -> Path:
    """Where the results of a part are."""
    return folder / PARTS / (re.sub(r"[^\w]+", "-", part.name).strip("-").lower() or "part")


def begin(folder: Path, study: Study) -> None:
    """Write what the study is into a folder that holds no run yet.

    Raises:
        ConfigError: it holds one, or cannot be written to.
    """
    for name in (STUDY, FILE):
        if (folder / name).exists():
            raise ConfigError(
                f"{folder} holds a {'study' if name == STUDY else 'run'} already, and nothing is "
                "overwritten. Go on with it with --resume, or choose another folder with --out."
            )
    record(folder, study)


def record(folder: Path, study: Study) -> None:
    """Write what the study is.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / STUDY, {"schema": SCHEMA, **study.to_json()})
    except OSError as error:
        raise ConfigError(
            f"Cannot write to {folder}: {error}. Nothing was trained; choose another --out."
        ) from None


def recorded(folder: Path) -> Study:
    """The study that was begun in `folder`.

    Raises:
        ConfigError: none was.
        FileError: its record cannot be read.
    """
    path = folder / STUDY
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        if schema != SCHEMA:
            raise FileError(f"{path} has schema {schema}; this version reads {SCHEMA}.")
        return Study.from_json(content)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no study to resume in {folder}. Leave --resume out to start one."
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{path} is not the record of a study: {str(error).rstrip('.')}. If it was damaged, "
            f"remove it and {FILE} beside it, and start the study again with the same options: "
            f"what is done under {PARTS}/ is kept."
        ) from None


def results_of(folder: Path, part: Part) -> Results | None:
    """The results of a part, as far as they go; None where it was not begun.

    Raises:
        FileError: they cannot be read.
    """
    place = part_folder(folder, part)
    return Results.read(place) if (place / FILE).exists() else None


def gather(folder: Path) -> Path:
    """Write the results of all parts, as far as they go, into one file; the path of it.

    Raises:
        FileError: the results of a part cannot be read, or the file cannot be written.
    """
    study = recorded(folder)
    found = [(part, results_of(folder, part)) for part in study.parts]
    runs = [
        {**run.to_json(), "part": part.name, "importance_classes": _classes(part)}
        for part, results in found
        if results
        for run in results.runs
    ]
    # What a run needs to know of itself stands in its record: here is what all have in common.
    configs = [(results.config if results else part.config).to_json() for part, results in found]
    config = {
        **_common(configs),
        **study.said(),
        "tasks": f"{study.stand_in}: {_tasks(study)}" if study.stand_in else _tasks(study),
        "waiting": [part.name for part, results in found if results is None],
        "parts": {part.name: config for (part, _), config in zip(found, configs)},
    }
    versions = next((results.versions for _, results in found if results), {})
    path = folder / FILE
    _write(path, {"schema": SCHEMA, "versions": versions, "config": config, "runs": runs})
    return path


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


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode())
