"""Measures everything, piece by piece, and writes the ledger: every figure beside its target.

    python benchmarks/everything.py [--minutes N] [--only WORD …] [--through COMMAND] [--list]

Each piece is a process of its own that puts its rows into benchmarks/results/. `--through nice`
would run every piece as `nice python …`: for whatever keeps a machine quiet meanwhile. What was
interrupted is measured again with `--only`. What is ours comes first, and what takes longer than
`--minutes` is left out, and named: 12 are for the ratios to plain passes, 0 is no limit. The worst
of what was measured against a target is printed at the end, beside the ledger.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from cases import CASES
from growth import CURVES
from importance import PARTS
from penalty import ARITHMETIC, OPTIMIZERS, SMALL
from records import key, read

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORST = 10


def pieces() -> dict[str, list[str]]:
    """What is called how → the script and its arguments."""
    found: dict[str, list[str]] = {}
    for case in CASES:
        arguments = ["--only", case.name, "--parts", PARTS[0]]
        found[f"importance, {case.name}, {PARTS[0]}"] = ["importance.py", *arguments]
    for name in (ARITHMETIC, SMALL, *OPTIMIZERS):
        found[f"penalty, {name}"] = ["penalty.py", "--only", name]
    for case in CASES:
        found[f"local, {case.name}"] = ["local.py", "--only", case.name]
    for case in CASES:
        for part in PARTS[1:]:
            arguments = ["--only", case.name, "--parts", part]
            found[f"importance, {case.name}, {part}"] = ["importance.py", *arguments]
    found |= {"startup": ["startup.py"], "run": ["run.py"]}
    for curve in CURVES:
        found[f"growth, {curve.name}"] = ["growth.py", "--only", curve.name]
    return found


def command(script: str, arguments: list[str], through: str) -> list[str]:
    """How a piece is run."""
    results = RESULTS / Path(script).with_suffix(".json").name
    run = [sys.executable, str(HERE / script), *arguments, "--json", str(results)]
    return [*shlex.split(through), *run]


def worst(since: str) -> list[str]:
    """The rows measured since then that are furthest from their targets, in words."""
    found = []
    for file in sorted(RESULTS.glob("*.json")):
        kept = json.loads(file.read_text(encoding="utf-8"))["rows"]
        today = {key(row) for row in kept if row.get("date", "") >= since}
        for row in read(file)[1]:
            if row.key in today and row.met is False and row.measured and row.target:
                off = row.measured / row.target
                off = 1 / off if row.at_least else off
                found.append((off, f"{row.shown} ({row.goal})  {row.work}, {row.model}"))
    return [told for _, told in sorted(found, reverse=True)[:WORST]]


def run(piece: list[str], seconds: float | None) -> bool:
    """Whether a piece came to its end, and well, in so many seconds."""
    try:
        return not subprocess.run(piece, check=False, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return False


def main() -> None:
    """Run the pieces one after another; what failed is listed at the end."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--minutes", type=float, default=12.0, help="in all; 0 for no limit")
    options.add_argument("--only", nargs="+", default=[], help="pieces with one of these words")
    options.add_argument("--through", default="", help="a command that runs each piece")
    options.add_argument("--list", action="store_true", help="say what there is, and stop")
    given = options.parse_args()
    wanted = {
        name: piece
        for name, piece in pieces().items()
        if not given.only or any(word.lower() in name.lower() for word in given.only)
    }
    if given.list or not wanted:
        print(*(wanted or pieces()), sep="\n")
        return
    failed, left_out, today = [], [], datetime.date.today().isoformat()
    started = time.monotonic()
    for number, (name, (script, *arguments)) in enumerate(wanted.items(), 1):
        begin = time.monotonic()
        left = started + 60 * given.minutes - begin if given.minutes else None
        if left is not None and left <= 0:
            left_out.append(name)
            continue
        well = run(command(script, arguments, given.through), left)
        took = f"{time.monotonic() - begin:.0f} s"
        print(f"{number}/{len(wanted)} {name}: {took}", file=sys.stderr, flush=True)
        failed += [] if well else [name]
    print("\nFurthest from their targets:", *worst(today), sep="\n  ")
    if left_out:
        print(f"Left out after {given.minutes:g} minutes: {'; '.join(left_out)}.")
    subprocess.run([sys.executable, HERE / "report.py"], check=False)
    if failed:
        raise SystemExit(f"Failed, or cut off: {'; '.join(failed)}.")


if __name__ == "__main__":
    main()
