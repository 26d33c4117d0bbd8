"""Measures everything, piece by piece, and writes the ledger: every figure beside its target.

    python benchmarks/everything.py [--only WORD …] [--through COMMAND] [--list]

Each piece is a process of its own that puts its rows into benchmarks/results/. `--through nice`
would run every piece as `nice python …`: for whatever keeps a machine quiet meanwhile. What was
interrupted is measured again with `--only`.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from cases import CASES
from growth import CURVES
from importance import PARTS
from penalty import ARITHMETIC, OPTIMIZERS

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def pieces() -> dict[str, list[str]]:
    """What is called how → the script and its arguments."""
    found: dict[str, list[str]] = {}
    for case in CASES:
        for part in PARTS:
            arguments = ["--only", case.name, "--parts", part]
            found[f"importance, {case.name}, {part}"] = ["importance.py", *arguments]
    for case in CASES:
        found[f"local, {case.name}"] = ["local.py", "--only", case.name]
    for name in (ARITHMETIC, *OPTIMIZERS):
        found[f"penalty, {name}"] = ["penalty.py", "--only", name]
    found |= {"startup": ["startup.py"], "run": ["run.py"]}
    for curve in CURVES:
        found[f"growth, {curve.name}"] = ["growth.py", "--only", curve.name]
    return found


def command(script: str, arguments: list[str], through: str) -> list[str]:
    """How a piece is run."""
    results = RESULTS / Path(script).with_suffix(".json").name
    run = [sys.executable, str(HERE / script), *arguments, "--json", str(results)]
    return [*shlex.split(through), *run]


def main() -> None:
    """Run the pieces one after another; what failed is listed at the end."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
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
    failed = []
    for number, (name, (script, *arguments)) in enumerate(wanted.items(), 1):
        begin = time.monotonic()
        done = subprocess.run(command(script, arguments, given.through), check=False)
        took = f"{time.monotonic() - begin:.0f} s"
        print(f"{number}/{len(wanted)} {name}: {took}", file=sys.stderr, flush=True)
        failed += [name] if done.returncode else []
    if failed:
        raise SystemExit(f"Failed: {'; '.join(failed)}.")
    raise SystemExit(subprocess.run([sys.executable, HERE / "report.py"], check=False).returncode)


if __name__ == "__main__":
    main()
