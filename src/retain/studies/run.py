"""A study carried out: part after part, resumable, with what could not be run and why."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from retain.errors import ConfigError, FileError, RetainError
from retain.experiment import Config, Interrupted, Results, UnwrittenError, WorkersLostError
from retain.experiment.content import FILE, Content
from retain.experiment.disk import NotOwnedError, OccupiedError
from retain.experiment.job import jobs
from retain.experiment.machine import chosen_device
from retain.experiment.progress import Watcher, spoken, watcher
from retain.experiment.run import run_by as run_config
from retain.experiment.run_folder import CHECKPOINTS, how_to_go_on, made, refuse_started
from retain.experiment.workers.crew import Crew, Workforce, crew
from retain.models import build_model
from retain.models.build import SMALL
from retain.studies.study import Part, Study
from retain.studies.study_folder import (
    gather,
    part_folder,
    record,
    recorded,
    results_of_all,
    write_gathered,
)
from retain.tasks.crops import PAPER_SIZE


class StudyOutcome(NamedTuple):
    """What came of a study: the parts that could be carried out, and the results of all."""

    study: Study
    content: Content


def carry_out(
    study: Study | None,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    workers: int = 1,
    scheduler: str | None = None,
) -> StudyOutcome:
    """Run every part of a study that is not done; what could be carried out, and what came of it.

    Args:
        study: what to run; None with `resume`: what was begun in `out`.
        out: its folder, with a folder for each part, and results.json with the runs of all.
        resume: go on with the study in `out`; it ends with the numbers of one never stopped.
        progress: show how far it is, and how much time is left.
        workers: processes of this machine that carry out the jobs of a part side by side.
        scheduler: address of a Dask scheduler, whose workers then carry them out.

    Raises:
        ConfigError: something that cannot be carried out, found before anything is trained.
        FileError: data, weights or results that cannot be read or written.
        Interrupted: Ctrl-C; what was finished is written.
        WorkersLostError: the scheduler is gone, or processes cannot be started.

    A part that cannot be run is skipped, with the reason; if that leaves none, it is an error.
    """
    workforce = Workforce(workers=workers, scheduler=scheduler)
    study = _possible(study, out, resume)
    with crew(workforce) as hands, made(out):
        if not resume:
            refuse_started(out)  # one may have been begun meanwhile
        record(out, study)
        return _carried_out(study, out, progress, hands)


def _carried_out(study: Study, out: Path, progress: bool, hands: Crew | None) -> StudyOutcome:
    results = results_of_all(out, study)
    todo = [part for part in study.parts if not _is_done(part, results.get(part.name))]
    watch = AllParts(watcher(progress), len(todo))
    try:
        carried = _part_after_part(study, todo, results, out, watch=watch, hands=hands)
    except BaseException as error:
        with suppress(FileError):  # what stopped the study is to be told, not what came of it
            gather(out)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"Interrupted. {_how_to_go_on(study, out)}") from None
        if isinstance(error, UnwrittenError):  # it says how to go on with the part alone
            raise FileError(f"{error.__cause__} {_how_to_go_on(study, out)}") from error
        if isinstance(error, WorkersLostError):
            raise WorkersLostError(f"{error.__cause__} {_how_to_go_on(study, out)}") from error
        raise
    finally:
        watch.close()
    return carried


def _part_after_part(
    study: Study,
    todo: list[Part],
    results: dict[str, Results],
    out: Path,
    *,
    watch: AllParts,
    hands: Crew | None,
) -> StudyOutcome:
    for part in todo:
        watch.begin(part.name)
        try:
            results[part.name] = _run(part, out, watch, hands)
        except (UnwrittenError, WorkersLostError, OccupiedError, NotOwnedError):
            raise
        except RetainError as error:
            watch.say(f"{part.name}: not run. {error}")
            study = study.without(part, str(error))
            if not study.parts:
                raise
            record(out, study)
        else:
            watch.end()
        write_gathered(out, study, results)
    return StudyOutcome(study, write_gathered(out, study, results))


def _how_to_go_on(study: Study, out: Path) -> str:
    return how_to_go_on(f"study {study.name}", out)


def _possible(study: Study | None, out: Path, resume: bool) -> Study:
    """The study, which fits what the folder holds and whose model can be built."""
    before = recorded(out) if resume else None
    if study is None:
        if before is None:
            raise ConfigError("Without resume=True, say which study to run.")
        study = before
    if before is None:
        refuse_started(out)
    else:
        differences = before.differences(study)
        if differences:
            raise ConfigError(
                f"The study in {out} was started with other options, so it is not resumed. "
                "Then → now: " + "; ".join(differences)
            )
    for config in _different_models(study):
        chosen_device(config.device)
        _build(config)
    return study


def _different_models(study: Study) -> list[Config]:
    """One config for each network with its weights."""
    return list({(p.config.model, p.config.weights): p.config for p in study.parts}.values())


def _build(config: Config) -> None:
    """See that the network is there and its weights fit, before anything is trained."""
    if config.model not in SMALL or config.weights is not None:
        side = config.image_size or PAPER_SIZE
        shape = (1, 8, 8) if config.tasks == "digits" else (3, side, side)
        build_model(config.model, input_shape=shape, seed=0, weights=config.weights)


def _is_done(part: Part, results: Results | None) -> bool:
    if results is None or len(results.runs) < len(jobs(part.config)):
        return False
    return all(run.status == "done" for run in results.runs)


def _run(part: Part, out: Path, watch: AllParts, hands: Crew | None) -> Results:
    folder = part_folder(out, part)
    resume = (folder / FILE).exists()
    results = run_config(hands, part.config, out=folder, resume=resume, progress=watch)
    checkpoints = folder / CHECKPOINTS
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    return results


class AllParts(Watcher):
    """Tells another watcher of all parts as if they were one run.

    How many steps a part takes is known when it begins; those that were not begun are expected to
    take as many as the others do on average.
    """

    def __init__(self, inner: Watcher, parts: int) -> None:
        self.inner = inner
        self.parts = parts
        self.steps: list[int] = []
        self.done = 0
        self.told: int | None = None  # steps that the inner watcher expects in all
        self.name = ""
        self.since = time.monotonic()

    @property
    def expected(self) -> int:
        """Steps of all parts."""
        known = sum(self.steps)
        waiting = max(self.parts - len(self.steps), 0)
        return known + (waiting * known // len(self.steps) if self.steps else 0)

    def begin(self, name: str) -> None:
        """A part begins; its data are read first."""
        self.name = name
        if self.parts > 1:
            self.inner.say(f"{name} (part {len(self.steps) + 1} of {self.parts})")

    def start(self, steps: int) -> None:
        """The part knows how long it takes."""
        self.steps.append(steps)
        if self.told is None:
            self.told = self.expected
            self.inner.start(self.told)
        else:
            self._tell()

    def more(self, steps: int) -> None:
        """The part takes longer, or less long, than it said."""
        if self.steps:
            self.steps[-1] += steps
            self._tell()

    def _tell(self) -> None:
        self.inner.more(self.expected - (self.told or 0))
        self.told = self.expected

    def at(self, job: str, task: str) -> None:
        """Name the part as well."""
        self.inner.at(f"{self.name}: {job}" if self.parts > 1 else job, task)

    def phase(self, what: str) -> None:
        """Pass it on."""
        self.inner.phase(what)

    def step(self, loss: Tensor) -> None:
        """Count, and pass it on."""
        self.done += 1
        self.inner.step(loss)

    def taken(self, count: int) -> None:
        """Count, and pass it on."""
        self.done += count
        self.inner.taken(count)

    def say(self, line: str) -> None:
        """Pass it on."""
        self.inner.say(line)

    def end(self) -> None:
        """A part is finished: say how much time is left."""
        left = self.expected - self.done
        if self.done and left > 0 and len(self.steps) < self.parts:
            seconds = left * (time.monotonic() - self.since) / self.done
            self.inner.say(
                f"{len(self.steps)} of {self.parts} parts done, about {spoken(seconds)} left"
            )

    def close(self) -> None:
        """The study is over, or interrupted."""
        if self.told is not None:
            self.inner.stop()
