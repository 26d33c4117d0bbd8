"""Time and memory, measured in the only ways in which their ratios mean something.

Time: in one process, the ways take turns, so that whatever else the machine does meets all of them;
a ratio is the median over the rounds of the ratio inside a round. Memory: a fresh process for every
way, since the memory of a process only grows.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

THREADS = 2
WARM_UP = 2
Run = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of each way in each round; what could not run says why."""

    seconds: Mapping[str, Sequence[float]]
    failed: Mapping[str, str]

    def milliseconds(self, way: str) -> float:
        """The median of one way."""
        return 1e3 * statistics.median(self.seconds[way])

    def ratio(self, way: str, to: str) -> float:
        """The median over rounds of way / to."""
        return statistics.median(a / b for a, b in zip(self.seconds[way], self.seconds[to]))


def interleaved(ways: Mapping[str, Run], *, rounds: int, warm_up: int = WARM_UP) -> Times:
    """The seconds of every way, taking turns for so many rounds after warming up."""
    torch.set_num_threads(THREADS)
    failed: dict[str, str] = {}
    for name, run in ways.items():
        try:
            for _ in range(warm_up):
                run()
        except Exception as error:  # a competitor that cannot run is a result, too
            failed[name] = reason(error)
    running = {name: run for name, run in ways.items() if name not in failed}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, run in running.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return Times(seconds, failed)


def reason(error: BaseException) -> str:
    """An error in a few words."""
    first = str(error).strip().split("\n")[0].split(". ")[0]
    return f"{type(error).__name__}: {first}"[:80].rstrip(" .:")


def peak_bytes() -> int:
    """The most memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    # elsewhere (macOS) there is no such file; there it is bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_in_fresh_process(script: str, arguments: Iterable[str]) -> int:
    """What `python script arguments` prints: the peak of a process that did one thing.

    Raises:
        RuntimeError: the process failed; with its last words.
    """
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return int(done.stdout.strip().splitlines()[-1])
