"""What `import retain` costs beyond `import torch`, in the same fresh process, each time a new one.

python benchmarks/startup.py [--rounds 9] [--json FILE]
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from records import Row, arguments, keep, quartiles, show

TARGET = 0.2  # seconds
SCRIPT = """
import time
begin = time.perf_counter()
import torch
middle = time.perf_counter()
import retain
print(middle - begin, time.perf_counter() - middle)
"""


def once() -> tuple[float, float]:
    """Seconds for torch, and for retain after it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    torch_seconds, more = map(float, done.stdout.split())
    return torch_seconds, more


def measured(rounds: int) -> Row:
    """The median over fresh processes of what the import adds."""
    once()  # files come from the disk the first time
    torch_seconds, more = zip(*(once() for _ in range(rounds)))
    low, middle, high = quartiles(more)
    return Row(
        *("the package", "import retain", "beyond import torch", middle),
        **{"unit": "s", "target": TARGET, "low": low, "high": high, "rounds": rounds},
        base=1e3 * statistics.median(torch_seconds),
    )


def main() -> None:
    """Measure, print, and write down."""
    given = arguments(__doc__, rounds=9).parse_args()
    rows = [measured(given.rounds)]
    show(rows, "Importing the library")
    if given.json:
        keep(rows, given.json)


if __name__ == "__main__":
    main()
