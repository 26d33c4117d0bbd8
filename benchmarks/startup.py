"""What `import retain` costs beyond `import torch`, in the same fresh process, each time a new one.

python benchmarks/startup.py [--rounds 9] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

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


def main() -> None:
    """Measure, print, and write down."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--json", type=Path, help="write the medians to this file")
    given = options.parse_args()
    once()  # files come from the disk the first time
    torch_seconds, more = (
        statistics.median(seconds) for seconds in zip(*(once() for _ in range(given.rounds)))
    )
    met = "met" if more <= TARGET else "MISSED"
    print(f"import torch {torch_seconds:.2f} s, retain + {more:.3f} s; ≤ {TARGET} s: {met}")
    if given.json:
        report = {"torch_seconds": torch_seconds, "retain_seconds": more, "target": TARGET}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
