"""Showing how far a run is: a live bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from retain.legible import visible

LOSS_EVERY = 0.5  # seconds between looks at the loss, each of which waits for the device
LINE_EVERY = 10.0  # seconds between lines while files are read
WORK_LINE_EVERY = 60.0  # and while networks are trained


class Watcher:
    """Is told what a run does, and shows nothing; `loss` is a tensor that should rarely be read."""

    def reading(self, what: str, done: int, total: int) -> None:
        """So many of the image files of a split were read."""

    def start(self, steps: int) -> None:
        """The run begins; it is expected to take so many steps of training."""

    def more(self, steps: int) -> None:
        """So many more steps are expected (a strength is being chosen), or fewer."""

    def at(self, job: str, task: str) -> None:
        """A job has come to a task (`task` says which of how many)."""

    def phase(self, what: str) -> None:
        """What the job does now: an epoch, importance, evaluation."""

    def step(self, loss: Tensor) -> None:
        """One step of training was taken."""

    def taken(self, count: int) -> None:
        """So many steps of training were taken by others, who work side by side."""

    def say(self, line: str) -> None:
        """Something that is worth a line."""

    def stop(self) -> None:
        """The run is over, or interrupted."""


class Lines(Watcher):
    """Plain lines for logs and pipes: one per finished task, and now and then how far all is."""

    def __init__(self) -> None:
        self.told = self.since = time.monotonic()
        self.expected = self.done = 0
        self.where = self.what = ""

    def reading(self, what: str, done: int, total: int) -> None:
        """Print a line if the last one is a while ago."""
        now = time.monotonic()
        if now - self.told >= LINE_EVERY:
            self.told = now
            self.say(f"reading {what}: {done}/{total}")

    def start(self, steps: int) -> None:
        """Count from here."""
        self.told = self.since = time.monotonic()
        self.expected = steps

    def more(self, steps: int) -> None:
        """Count with them."""
        self.expected += steps

    def at(self, job: str, task: str) -> None:
        """Remember it for the next line."""
        self.where, self.what = ", ".join(part for part in (job, task) if part), ""

    def phase(self, what: str) -> None:
        """Remember it for the next line."""
        self.what = what

    def step(self, loss: Tensor) -> None:
        """Count; print a line if the last one is a while ago."""
        self.taken(1)

    def taken(self, count: int) -> None:
        """Count; print a line if the last one is a while ago."""
        self.done += count
        now = time.monotonic()
        if now - self.told < WORK_LINE_EVERY or not self.done:
            return
        self.told = now
        left = max(self.expected - self.done, 0)
        share = self.done / max(self.expected, self.done)
        where = ", ".join(part for part in (self.where, self.what) if part)
        self.say(
            f"{where}: {share:.0%} of all steps, "
            f"about {spoken((now - self.since) * left / self.done)} left"
        )

    def say(self, line: str) -> None:
        """Print the line to standard error, at once."""
        print(visible(line), file=sys.stderr, flush=True)


class Live(Watcher):
    """A bar with the job, the task, the phase, the loss and the time that is left."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.fields[job]}", style="bold", markup=False),
            TextColumn("{task.fields[at]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[phase]:<28}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.bar = TaskID(0)
        self.done = 0
        self.shown = 0.0
        self.what = ""
        self.readings: dict[str, TaskID] = {}

    def reading(self, what: str, done: int, total: int) -> None:
        """Show a bar for the split, until all of it is read."""
        if what not in self.readings:
            bar = self.progress.add_task("", total=total, job="reading", at=visible(what), phase="")
            self.readings[what] = bar
            self.progress.start()
        bar = self.readings[what]
        self.progress.update(bar, completed=done, visible=done < total)

    def start(self, steps: int) -> None:
        """Show the bar."""
        self.bar = self.progress.add_task("", total=steps, job="", at="", phase="")
        self.progress.start()

    def more(self, steps: int) -> None:
        """Lengthen the bar."""
        total = self.progress.tasks[self.bar].total or 0
        self.progress.update(self.bar, total=total + steps)

    def at(self, job: str, task: str) -> None:
        """Name the job and the task."""
        self.progress.update(self.bar, job=visible(job), at=visible(task))

    def phase(self, what: str) -> None:
        """Name the phase."""
        self.what = what
        self.progress.update(self.bar, phase=what)

    def step(self, loss: Tensor) -> None:
        """Move the bar; show the loss from time to time."""
        self.done += 1
        now = time.monotonic()
        if now - self.shown >= LOSS_EVERY:
            self.shown = now
            self.progress.update(
                self.bar, completed=self.done, phase=f"{self.what}, loss {loss.item():.3f}"
            )

    def taken(self, count: int) -> None:
        """Move the bar."""
        self.done += count
        self.progress.update(self.bar, completed=self.done)

    def say(self, line: str) -> None:
        """Print the line above the bar."""
        self.progress.console.print(visible(line), highlight=False, markup=False, emoji=False)

    def stop(self) -> None:
        """Take the bar away."""
        self.progress.stop()


def spoken(seconds: float) -> str:
    """A time as one says it: 40 s, 12 min."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def watcher(progress: bool) -> Watcher:
    """What suits the place: a bar on a terminal, lines elsewhere, nothing if not asked for."""
    if not progress:
        return Watcher()
    console = Console(stderr=True)
    return Live(console) if console.is_terminal else Lines()
