"""Who carries out the jobs of a run: this process, several of this machine, or a cluster.

Jobs know nothing of each other, so it does not matter who does which, nor in which order: the
numbers are those of one process. A job whose worker is killed is done again, from its last task.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Protocol

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from retain.errors import ConfigError, FileError
from retain.experiment.checks import STRICT, checked, wrong
from retain.experiment.job import Job
from retain.experiment.progress import Watcher
from retain.experiment.record import Run
from retain.experiment.workers.assignment import Assignment, Event, Hear
from retain.experiment.workers.cluster import Cluster
from retain.experiment.workers.processes import Processes
from retain.legible import visible
from retain.tasks.options import option

ADDRESS = re.compile(r"[a-z]+://(\[[0-9A-Fa-f:.%]+\]|[\w.-]+):(\d{1,5})(/\S*)?")
SHOWN = 2  # jobs that are named while they are at work


def _address(value: str) -> str:
    found = ADDRESS.fullmatch(value)
    if found is None or not 0 < int(found.group(2)) < 2**16:
        return wrong("an address such as tcp://HOST:8786")
    return value


@checked
@dataclass(frozen=True, config=STRICT)
class Workforce:
    """Who carries out jobs; no number depends on it. Each field says what it is.

    Raises:
        ConfigError: something that cannot be.
    """

    workers: int = option(1, "processes on this machine that run jobs in parallel", ge=1, le=1024)
    scheduler: Annotated[str, AfterValidator(_address)] | None = option(
        None, "address of a Dask scheduler whose workers run the jobs, as tcp://HOST:8786"
    )

    def __post_init__(self) -> None:
        if self.scheduler is not None and self.workers > 1:
            raise ConfigError(
                f"{self.workers} workers are requested, and a scheduler, which has its own "
                "workers. Give only one of the two."
            )


class Crew(Protocol):
    """Workers."""

    def carry_out(self, assignments: Iterable[Assignment], hear: Hear) -> None:
        """Have every job done, and tell of each step: see `assignment` for what there is to hear.

        Raises:
            StateError: there are no workers any more.
        """


@contextlib.contextmanager
def crew(workforce: Workforce) -> Iterator[Crew | None]:
    """Within it workers are at hand; None where this process does everything itself.

    Raises:
        ConfigError: the scheduler does not answer.
        MissingExtraError: `dask.distributed` is not installed.
    """
    if workforce.scheduler is None and workforce.workers == 1:
        yield None
        return
    made: Processes | Cluster
    if workforce.scheduler is None:
        made = Processes(workforce.workers)
    else:
        made = Cluster(workforce.scheduler)
    try:
        yield made
    finally:
        made.close()


class Hearing:
    """Puts what workers tell into one display, and their records where records go."""

    def __init__(
        self,
        jobs: dict[int, Job],
        tasks: Sequence[str],
        watch: Watcher,
        keep: Callable[[int, Run], None],
    ) -> None:
        self.jobs = jobs
        self.runs = {place: job.begun(tasks) for place, job in jobs.items()}
        self.watch = watch
        self.keep = keep
        self.at: dict[int, str] = {}  # where jobs that are worked on stand
        self.taken = Counter[int]()  # steps of jobs that are worked on
        self.ended: set[int] = set()
        self.warned: set[str] = set()
        for place, run in self.runs.items():
            keep(place, run)

    def hear(self, event: Event) -> None:
        """Take in one event.

        Raises:
            FileError: a worker cannot write its checkpoint.
        """
        kind, place, *what = event
        if place not in self.ended:
            getattr(self, f"_{kind}")(place, *what)

    def _begun(self, place: int) -> None:
        if place in self.at:  # before; what it did since its last task is done again
            self.watch.say(f"{self.jobs[place].label}: its worker was lost, so it is run again")
            self.watch.more(self.taken[place])
        self.taken[place] = 0
        self._at(place, "")

    def _at(self, place: int, task: str) -> None:
        self.at[place] = task
        named = [f"{self.jobs[at].label} {where}".strip() for at, where in self.at.items()]
        if len(named) > SHOWN:
            named[SHOWN:] = [f"and {len(named) - SHOWN} more"]
        self.watch.at(f"{len(self.ended)}/{len(self.jobs)} jobs done", ", ".join(named))

    def _steps(self, place: int, count: int) -> None:
        self.taken[place] += count
        self.watch.taken(count)

    def _more(self, place: int, steps: int) -> None:
        self.watch.more(steps)

    def _say(self, place: int, line: str) -> None:
        self.watch.say(line)

    def _warn(self, place: int, text: str) -> None:
        if text not in self.warned:
            self.warned.add(text)
            warnings.warn(text, stacklevel=2)

    def _record(self, place: int, record: str) -> None:
        self._keep(place, Run.from_json(json.loads(record)))

    def _keep(self, place: int, run: Run) -> None:
        self.runs[place] = run
        self.keep(place, run)
        if run.status != "running":
            self.ended.add(place)
            self.at.pop(place, None)

    def _gone(self, place: int, why: str) -> None:
        self.watch.say(f"{self.jobs[place].label}: failed. {visible(why)}")
        self._keep(place, self.runs[place].model_copy(update={"status": "failed", "error": why}))

    def _unwritten(self, place: int, why: str) -> None:
        raise FileError(why)
