"""Read results.json: everything that is wrong with it is found first, then said at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retain.errors import FileError
from retain.report.checks import Checks, told
from retain.report.naming import in_sequences
from retain.report.results import Matrix, Results, Run

SCHEMA = 1
STATUSES = ("done", "running", "failed")
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
AGREE = 1e-4  # how far a stored mean may be from the matrix it was taken from


def read(results: Mapping[str, Any] | Path | str) -> Results:
    """The content of a results.json, checked: a dict, the file, or the folder that holds it.

    Raises:
        FileError: the file is missing, truncated or from a newer schema, or does not hold
            what its schema promises; every problem that was found is listed.
    """
    if isinstance(results, Mapping):
        return _checked(results, "these results")
    path = Path(results)
    path = path / "results.json" if path.is_dir() else path
    return _checked(_loaded(path), str(path))


def _loaded(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileError(
            f"There is no {path}. Give the folder that `retain run --out` wrote, "
            "or the results.json inside it."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read as text: {error}. Is it a results.json?") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # Cut off: the parser stops at the end of the file, or in a string that never ends.
        cut = not text.strip() or error.pos >= len(text.rstrip()) or "Unterminated" in error.msg
        why = "ends in the middle, as after a broken copy," if cut else "is not JSON"
        raise FileError(
            f"{path} {why} (line {error.lineno}, column {error.colno}: {error.msg}). Copy it "
            "again, or start the same command with --resume to have it written anew."
        ) from None


def _checked(content: Any, source: str) -> Results:
    if not isinstance(content, Mapping):
        raise FileError(
            f"{source} holds a {type(content).__name__}, but a results.json is an object with "
            "schema, versions, config and runs. Is it the right file?"
        )
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise FileError(
            f"{source} has schema {schema}, but this version of retain reads schemas up to "
            f"{SCHEMA}. Upgrade with `pip install -U retain`."
        )
    checks = Checks()
    if schema != SCHEMA or isinstance(schema, bool):
        checks.problem("schema", f"should be {SCHEMA}, but {told(schema)}")
    versions = checks.mapping(content.get("versions"), "versions")
    config = _config(checks, content.get("config"))
    given = checks.sequence(content.get("runs"), "runs")
    runs = tuple(_run(checks, run, f"runs[{place}]") for place, run in enumerate(given))
    if checks.problems:
        raise FileError(
            f"{source} does not hold what a results.json of schema {SCHEMA} promises. "
            "Was it edited by hand? Put these right, or start the same command with --resume "
            f"to have it written anew:{checks.listed()}"
        )
    told_versions = {name: str(version) for name, version in versions.items()}
    return Results(source, told_versions, config, runs, in_sequences(runs))


def _config(checks: Checks, given: Any) -> Mapping[str, Any]:
    """What was asked for: any names and values, but these few as the page reads them."""
    config = checks.mapping(given, "config")
    for name in ("title", "study", "stand_in", "splits"):
        checks.text(config.get(name), f"config.{name}")
    for name in ("methods", "seeds", "departures", "adapt_to", "waiting"):
        checks.sequence(config.get(name, []), f"config.{name}")
    for name in ("skipped", "altered"):
        checks.mapping(config.get(name) or {}, f"config.{name}")
    return config


def _run(checks: Checks, given: Any, where: str) -> Run:
    run = checks.mapping(given, where)
    if not run:
        return Run("", 0, (), ())
    status = run.get("status", "done")
    if status not in STATUSES:
        checks.problem(f"{where}.status", f"should be one of {STATUSES}, but {told(status)}")
    listed = checks.sequence(run.get("tasks"), f"{where}.tasks")
    tasks = tuple(checks.name(task, f"{where}.tasks[{j}]") for j, task in enumerate(listed))
    accuracy = _matrix(checks, run.get("accuracy"), len(tasks), f"{where}.accuracy")
    measures = {name: checks.number(run.get(name), f"{where}.{name}") for name in MEASURES}
    if status == "done":
        _agreement(checks, accuracy, measures, len(tasks), where)
    return Run(
        method=checks.name(run.get("method"), f"{where}.method"),
        seed=checks.whole(run.get("seed"), f"{where}.seed"),
        tasks=tasks,
        accuracy=accuracy,
        status=status,
        error=checks.text(run.get("error"), f"{where}.error"),
        strength=checks.number(run.get("strength"), f"{where}.strength"),
        form=checks.text(run.get("form"), f"{where}.form"),
        importance_on=checks.text(run.get("importance_on"), f"{where}.importance_on"),
        importance_classes=_names(checks, run, "importance_classes", where),
        measures={name: value for name, value in measures.items() if value is not None},
        memory=_memory(checks, run, where),
        layers=_layers(checks, run.get("importance_by_layer"), f"{where}.importance_by_layer"),
        search=_search(checks, run.get("strength_search"), f"{where}.strength_search"),
        by_class=_by_class(checks, run, "accuracy_by_class", where),
        by_class_learned=_by_class(checks, run, "accuracy_by_class_learned", where),
    )


def _matrix(checks: Checks, given: Any, tasks: int, where: str) -> Matrix:
    """At most one row a task, each with at most one value a task, none for tasks to come."""
    rows = []
    for i, row in enumerate(checks.sequence(given, where)):
        values = checks.sequence(row, f"{where}[{i}]")
        if len(values) > tasks or i >= tasks:
            checks.problem(f"{where}[{i}]", f"does not fit a run of {tasks} tasks")
        found = [checks.fraction(value, f"{where}[{i}][{j}]") for j, value in enumerate(values)]
        if any(value is not None for value in found[i + 1 :]):
            checks.problem(f"{where}[{i}]", "has accuracies on tasks that were not learned yet")
        rows.append(tuple(found))
    return tuple(rows)


def _agreement(
    checks: Checks, accuracy: Matrix, measures: dict[str, float | None], tasks: int, where: str
) -> None:
    """A finished run's last row is complete, and the stored means are those of the matrix."""
    last = accuracy[-1] if len(accuracy) == tasks and tasks else ()
    final = [value for value in last if value is not None]
    if len(final) != tasks or not tasks:
        checks.problem(f"{where}.accuracy", f"should end with the accuracies on all {tasks} tasks")
        return
    expected = {"average_accuracy": sum(final) / tasks}
    # Forgetting of task j: the best accuracy before the last task − the final one.
    best = [[row[j] for row in accuracy[j:-1] if row[j] is not None] for j in range(tasks - 1)]
    if best and all(best):
        kept = [max(value for value in column if value is not None) for column in best]
        expected["average_forgetting"] = sum(b - f for b, f in zip(kept, final)) / (tasks - 1)
    for name, value in expected.items():
        stored = measures[name]
        if stored is None and name == "average_accuracy":
            checks.problem(f"{where}.{name}", "is missing")
        elif stored is not None and not abs(stored - value) <= AGREE:
            checks.problem(
                f"{where}.{name}", f"is {stored:.4g}, but its accuracy matrix gives {value:.4g}"
            )


def _memory(checks: Checks, run: Mapping[str, Any], where: str) -> tuple[dict[str, int], ...]:
    """Bytes by kind after each task; where only the final ones are known, those alone."""
    by_task = run.get("memory_bytes_by_task")
    steps = [run["memory_bytes"]] if by_task is None and run.get("memory_bytes") else by_task
    where = f"{where}.memory_bytes" + ("" if by_task is None else "_by_task")
    return tuple(
        {kind: checks.whole(size, f"{where}[{i}].{kind}") for kind, size in kinds.items()}
        for i, step in enumerate(checks.sequence(steps or [], where))
        for kinds in [checks.mapping(step, f"{where}[{i}]")]
    )


def _layers(checks: Checks, given: Any, where: str) -> dict[str, dict[str, Any]]:
    """Per parameter the mean, the share of the total, and seven quantiles where known."""
    layers = {}
    for name, layer in checks.mapping({} if given is None else given, where).items():
        values = checks.mapping(layer, f"{where}.{name}")
        quantiles = checks.sequence(values.get("quantiles") or [], f"{where}.{name}.quantiles")
        layers[name] = {
            "mean": checks.number(values.get("mean"), f"{where}.{name}.mean"),
            "share": checks.number(values.get("share"), f"{where}.{name}.share"),
            "quantiles": [checks.number(q, f"{where}.{name}.quantiles") for q in quantiles],
        }
        if quantiles and len(quantiles) != 7:
            checks.problem(f"{where}.{name}.quantiles", f"should be 7, but are {len(quantiles)}")
    return layers


def _names(checks: Checks, given: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    listed = checks.sequence(given.get(field) or [], f"{where}.{field}")
    return tuple(checks.name(one, f"{where}.{field}[{k}]") for k, one in enumerate(listed))


def _by_class(
    checks: Checks, run: Mapping[str, Any], field: str, where: str
) -> dict[str, dict[str, float | None]]:
    """Accuracy by task and class."""
    found = {}
    for task, classes in checks.mapping(run.get(field) or {}, f"{where}.{field}").items():
        there = f"{where}.{field}.{task}"
        found[task] = {
            name: checks.fraction(value, f"{there}.{name}")
            for name, value in checks.mapping(classes, there).items()
        }
    return found


def _search(checks: Checks, given: Any, where: str) -> tuple[dict[str, Any], ...]:
    """What a search for λ tried, in order."""
    tried = []
    for i, step in enumerate(checks.sequence([] if given is None else given, where)):
        values = checks.mapping(step, f"{where}[{i}]")
        strength = checks.number(values.get("strength"), f"{where}[{i}].strength")
        accuracy = checks.fraction(values.get("accuracy"), f"{where}[{i}].accuracy")
        tried.append({**values, "strength": strength, "accuracy": accuracy})
    return tuple(tried)
