"""The workers of a Dask scheduler, on whatever machines they are."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from retain.errors import ConfigError, StateError
from retain.experiment.workers.assignment import AbandonedError, Assignment, Event, Hear, Worker
from retain.extras import needs
from retain.header import shown
from retain.legible import visible

ANSWER = 15.0  # seconds in which a scheduler has to answer
BUSY = 1.0  # seconds that a job waits in a process that has another
LOOK_EVERY = 2.0  # seconds between looks at the cluster
SAY_EVERY = 60.0  # seconds between words on a cluster without workers
WORKER = Worker()
AT_WORK = threading.Lock()


def _do(assignment: Assignment, topic: str) -> Event | None:
    """What a job ended with, carried out on a worker of the cluster; None if nobody waits for it.

    What torch draws at random belongs to a process, so threads of one process take turns; whoever
    has to wait goes back to the scheduler, for another process that is free.
    """
    distributed = needs("distributed", "cluster")
    worker = distributed.get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing"

    if not AT_WORK.acquire(timeout=BUSY):
        raise distributed.Reschedule
    try:
        return WORKER.do(assignment, lambda event: worker.log_event(topic, event), is_wanted)
    except AbandonedError:
        return None
    finally:
        AT_WORK.release()


async def _forget() -> None:
    """Let go of the tasks that a worker of the cluster holds for the next job of a run."""
    WORKER.stage = WORKER.asked = None


def _knock(address: str) -> None:
    """See that somebody is at the address at all, who may be just starting.

    Raises:
        OSError: nobody is, for as long as a scheduler has to answer.
    """
    parts = urlsplit(address)
    end = time.monotonic() + ANSWER
    while parts.scheme in ("tcp", "tls"):
        try:
            socket.create_connection(
                (parts.hostname or "", parts.port or 0), timeout=ANSWER
            ).close()
            return
        except OSError:
            if time.monotonic() >= end:
                raise
            time.sleep(min(0.5, ANSWER))


def _client(distributed: Any, address: str) -> Any:
    """A client of the scheduler at the address.

    Raises:
        TimeoutError: whoever is there says nothing, for which Dask itself would wait for ever.
        OSError, ValueError: nobody is there, or somebody else.
    """
    found: queue.Queue[Any] = queue.Queue()
    given_up = threading.Event()

    def ask() -> None:
        try:
            client = distributed.Client(address, timeout=ANSWER, set_as_default=False)
        except Exception as error:
            found.put(error)
            return
        found.put(client)
        if given_up.is_set():
            client.close()

    threading.Thread(target=ask, daemon=True).start()
    try:
        client = found.get(timeout=ANSWER + 1)
    except queue.Empty:
        given_up.set()
        raise TimeoutError from None
    if isinstance(client, Exception):
        raise client
    return client


class Cluster:
    """The workers of a Dask scheduler, which minds those that are killed."""

    def __init__(self, address: str) -> None:
        distributed = needs("distributed", "cluster")
        self.address = address
        try:
            _knock(address)
            self.client = _client(distributed, address)
        except Exception as error:  # whatever is wrong with an address, or behind it
            raise ConfigError(
                f"The scheduler {shown(address)} did not answer within {ANSWER:g} seconds "
                f"({type(error).__name__}). Is it running, and is that its address? Start one "
                "with: dask scheduler"
            ) from None

    def carry_out(self, assignments: Iterable[Assignment], hear: Hear) -> None:
        """See `Crew`."""
        events: queue.Queue[Event] = queue.Queue()
        topic = f"retain-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self.client.subscribe_topic(topic, lambda event: events.put(tuple(event[1])))
        # A job is no pure function: done again it must not be taken from what is remembered.
        futures = {
            one.place: self.client.submit(_do, one, topic, pure=False) for one in assignments
        }
        for place, future in futures.items():
            future.add_done_callback(lambda done, place=place: events.put(("done", place, done)))
        told = -SAY_EVERY
        try:
            while futures:
                try:
                    event = events.get(timeout=LOOK_EVERY)
                except queue.Empty:
                    told = self._looked(min(futures), told, hear)
                    continue
                if event[0] == "done":
                    hear(self._last(event[1], event[2]))
                    # What a worker keeps for us would be done again if it were lost.
                    futures.pop(event[1]).release()
                else:
                    hear(event)
        finally:
            with contextlib.suppress(Exception):
                self.client.cancel([*futures.values()])
                self.client.unsubscribe_topic(topic)

    def _last(self, place: int, future: Any) -> Event:
        """What a job ended with, on a worker that may have been killed too often."""
        if future.status == "finished":
            last = future.result()
            if last is None:
                raise StateError("The folder of the run now belongs to another run.")
            return tuple(last)
        if future.status == "error":
            error = future.exception()
            why = f"Its worker failed: {type(error).__name__}: {visible(str(error))}"
            return ("gone", place, why)
        raise StateError(f"The scheduler {self.address} is gone.")

    def _looked(self, place: int, told: float, hear: Hear) -> float:
        """See whether the scheduler is there, and say now and then that it has no workers."""
        if self.client.status != "running":
            raise StateError(f"The scheduler {self.address} is gone.")
        if time.monotonic() - told < SAY_EVERY or self.client.scheduler_info()["workers"]:
            return told
        line = (
            f"The scheduler {self.address} has no workers yet, and jobs wait for some. Start one "
            f"with: dask worker {self.address}"
        )
        hear(("say", place, line))
        return time.monotonic()

    def close(self) -> None:
        """Let the scheduler go; its workers stay."""
        with contextlib.suppress(Exception):
            self.client.run(_forget, wait=False)
        with contextlib.suppress(Exception):
            self.client.close()
