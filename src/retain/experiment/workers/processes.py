"""Processes of this machine that carry out jobs side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from retain.errors import StateError
from retain.experiment.learner import described
from retain.experiment.workers.assignment import AbandonedError, Assignment, Event, Hear, Worker

ATTEMPTS = 3  # at a job whose worker is killed
READY, DONE = ("ready",), ("done",)
# Imported once for all workers: the package, what a first step imports, and the small data sets.
PRELOADED = ["retain.experiment", "torch._dynamo", "sklearn.datasets"]
ENDING = 5.0  # seconds in which a process that fell silent has to be gone


def _serve(connection: Connection) -> None:
    """What a worker process does: one job after another, until there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its workers

    def tell(event: Event) -> None:
        try:
            connection.send(event)
        except OSError:  # the run is gone, whatever ended it
            os._exit(1)

    def is_wanted() -> bool:
        with contextlib.suppress(OSError):
            return multiprocessing.parent_process().is_alive()  # type: ignore[union-attr]
        return False

    tell(READY)
    worker = Worker()
    while True:
        try:
            assignment = connection.recv()
        except (EOFError, OSError):
            return
        try:
            tell(worker.do(assignment, tell, is_wanted))
        except AbandonedError:
            os._exit(1)
        except BaseException as error:  # of somebody's own, which would end the process
            tell(("gone", assignment.place, described(error)))
        tell(DONE)


@dataclass
class _Process:
    process: BaseProcess
    connection: Connection
    ready: bool = False
    at: Assignment | None = None


class Processes:
    """Processes of this machine, each with a job at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.context = _context()
        self.workers: list[_Process] = []

    def carry_out(self, assignments: Iterable[Assignment], hear: Hear) -> None:
        """See `Crew`."""
        todo, attempts = deque(assignments), dict[int, int]()
        while todo or any(worker.at for worker in self.workers):
            self._hand_out(todo)
            busy = {worker.connection: worker for worker in self.workers if worker.at}
            for ready in wait([*busy]):
                assert isinstance(ready, Connection)
                worker = busy[ready]
                if self._is_heard(worker, hear) or worker.at is None:
                    continue
                lost, ended = worker.at, self._forget(worker)
                if not worker.ready and ended > 0:
                    raise StateError(
                        f"A worker process could not begin (exit code {ended}). A script that "
                        'runs with workers needs `if __name__ == "__main__":` around what it '
                        "does, since each worker reads the script first."
                    )
                attempts[lost.place] = attempts.get(lost.place, 0) + 1
                if attempts[lost.place] < ATTEMPTS:
                    todo.appendleft(lost)
                else:
                    how = f"signal {-ended}" if ended < 0 else f"exit code {ended}"
                    why = f"Its worker process ended {ATTEMPTS} times, the last time by {how}."
                    hear(("gone", lost.place, why))

    def _hand_out(self, todo: deque[Assignment]) -> None:
        """Give every idle worker a job, and begin workers while there are fewer than wanted."""
        while todo:
            idle = next((worker for worker in self.workers if worker.at is None), None)
            if idle is None and len(self.workers) < self.count:
                idle = self._begun()
            if idle is None:
                return
            try:
                idle.connection.send(todo[0])
            except OSError:  # it was killed while it had nothing to do
                self._forget(idle)
                continue
            idle.at = todo.popleft()

    def _begun(self) -> _Process:
        here, there = self.context.Pipe()
        # Not daemons, which may have no processes of their own to read images.
        process = self.context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(there,), daemon=False
        )
        try:
            with _without_interrupts():
                process.start()
        except (EOFError, OSError) as error:
            here.close()
            raise StateError(
                f"No worker process could be started ({type(error).__name__}): the process that "
                "starts them was ended, or there are too many processes."
            ) from error
        finally:
            there.close()
        self.workers.append(_Process(process, here))
        return self.workers[-1]

    def _is_heard(self, worker: _Process, hear: Hear) -> bool:
        """Pass on what a worker says; whether it can speak."""
        try:
            event = worker.connection.recv()
        except (EOFError, OSError):
            return False
        if event == READY:
            worker.ready = True
        elif event == DONE:
            worker.at = None
        else:
            hear(event)
        return True

    def _forget(self, worker: _Process) -> int:
        """The exit code of a worker that fell silent; negative for a signal."""
        worker.connection.close()
        worker.process.join(ENDING)
        worker.process.kill()
        worker.process.join()
        self.workers.remove(worker)
        return worker.process.exitcode or 0

    def close(self) -> None:
        """End all workers, at work or not: what they had finished is in their checkpoints."""
        for worker in self.workers:
            worker.process.kill()
            worker.connection.close()
        for worker in self.workers:
            worker.process.join()
        self.workers.clear()


def _context() -> BaseContext:
    """How processes begin: from one that has imported everything already, where there is that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started within it never sees Ctrl-C, which is for the run; it ends its workers."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
