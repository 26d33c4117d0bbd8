"""Time and memory, measured in the only ways in which their ratios mean something.

Time: in one process, the ways take turns, so that whatever else the machine does meets all of them;
a ratio is the median over the rounds of the ratio inside a round. Memory: a fresh process for every
way, since the memory of a process only grows.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from records import THREADS

WARM_UP = 2
SLOW, FEW = 4.0, 3  # a way that takes so many times as long as the first may do fewer rounds
ENOUGH = 20.0  # seconds of measuring
Run = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of each way in each round; what could not run says why."""

    seconds: Mapping[str, Sequence[float]]
    failed: Mapping[str, str]

    def milliseconds(self, way: str) -> float:
        """The median of one way."""
        return 1e3 * statistics.median(self.seconds[way])

    def ratios(self, way: str, to: str) -> list[float]:
        """Way / to, round by round; a way that did fewer rounds did the first ones."""
        return [a / b for a, b in zip(self.seconds[way], self.seconds[to])]

    def ratio(self, way: str, to: str) -> float:
        """The median over rounds of way / to."""
        return statistics.median(self.ratios(way, to))


def interleaved(
    ways: Mapping[str, Run], *, rounds: int, warm_up: int = WARM_UP, patient: Collection[str] = ()
) -> Times:
    """The seconds of every way, taking turns for so many rounds after warming up.

    Those named in `patient` warm up once, and do `FEW` rounds, if they turn out to be `SLOW`. What
    takes more than a second warms up once, and after `ENOUGH` seconds `FEW` rounds will do.
    """
    torch.set_num_threads(THREADS)
    failed: dict[str, str] = {}
    turns = dict.fromkeys(ways, rounds)
    usual = 0.0
    for name, run in ways.items():
        try:
            for _ in range(warm_up):
                took = timed(run)
                if name in patient and took > SLOW * usual:
                    turns[name] = min(rounds, FEW)
                    break
                if took > 1:
                    break
        except Exception as error:  # a competitor that cannot run is a result, too
            failed[name] = reason(error)
        usual = usual or took
    running = {name: run for name, run in ways.items() if name not in failed}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    begun = time.perf_counter()
    for turn in range(rounds):
        if turn >= FEW and time.perf_counter() - begun > ENOUGH:
            break
        for name, run in running.items():
            if turn < turns[name]:
                seconds[name].append(timed(run))
    return Times(seconds, failed)


def timed(run: Run) -> float:
    """The seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def reason(error: BaseException) -> str:
    """An error in a few words."""
    first = str(error).strip().split("\n")[0].split(". ")[0]
    return f"{type(error).__name__}: {first}"[:140].rstrip(" .:")


def forget_peak() -> None:
    """On Linux with glibc: what was freed leaves the process, and the peak so far is forgotten."""
    forgetting = Path("/proc/self/clear_refs")
    if forgetting.exists():
        ctypes.CDLL(None).malloc_trim(0)
        forgetting.write_text("5")


def peak_bytes() -> int:
    """The most memory that this process has held at once, or since `forget_peak()`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    # elsewhere (macOS) there is no such file; there it is bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_in_fresh_process(script: str, arguments: Iterable[str], *, repeats: int = 1) -> int:
    """What `python script arguments` prints: the peak of a process that did one thing.

    The least of some repeats: how far a heap is fragmented is partly chance, and only ever adds.

    Raises:
        RuntimeError: the process failed; with its last words.
    """
    command, peaks = [sys.executable, script, *arguments], []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
        peaks.append(int(done.stdout.strip().splitlines()[-1]))
    return min(peaks)
