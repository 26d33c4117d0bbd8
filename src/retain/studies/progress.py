"""How far a whole study is: the time that is left counts the parts that were not begun yet."""

from __future__ import annotations

import time

from torch import Tensor

from retain.experiment.progress import Watcher


class Whole(Watcher):
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

    def say(self, line: str) -> None:
        """Pass it on."""
        self.inner.say(line)

    def end(self) -> None:
        """A part is finished: say how much time is left."""
        left = self.expected - self.done
        if self.done and left > 0 and len(self.steps) < self.parts:
            seconds = left * (time.monotonic() - self.since) / self.done
            said = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
            self.inner.say(f"{len(self.steps)} of {self.parts} parts done, about {said} left")

    def close(self) -> None:
        """The study is over, or interrupted."""
        if self.told is not None:
            self.inner.stop()
