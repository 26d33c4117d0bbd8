"""Do the tests notice a changed line? A seeded sample of mutants of the core, with cosmic-ray.

    pip install cosmic-ray
    python benchmarks/mutants.py --out mutants [--only ROOM …] [--count 25] [--seed 0] [--tree .]

A mutant is the source with one change: `<` for `<=`, `+` for `-`, a `not` more, a number off by
one, a loop that never runs. The tests of its room run on it; one that fails has killed it. Mutants
are made in a copy of the tree. Which ones is decided by a hash of the place, one for each place, so
that a second run of a file that nobody has changed asks for the same ones. What was killed before
is not asked again as long as its file is the same: `mutants/ROOM.json` remembers, and a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec

SECONDS = 120  # of processor time, for the tests of one mutant
COPIED = ("src", "tests", "pyproject.toml")
# `X | None` in an annotation is never evaluated, and a shift of a float is an error at once:
# mutants that nothing can notice, or nothing can miss.
LEFT_OUT = re.compile("BitOr_|_(BitOr|BitAnd|BitXor|LShift|RShift)$")


@dataclass(frozen=True)
class Room:
    """Files that are changed, and the tests that are to notice."""

    source: str
    tests: tuple[str, ...]


ROOMS = {
    "penalty": Room("penalty", ("tests/test_penalty.py",)),
    "importance": Room("importance.py", ("tests/test_importance.py",)),
    "parameters": Room("parameters.py", ("tests/test_parameters.py",)),
    "rules": Room(
        "per_sample/rules",
        ("tests/per_sample/test_rules.py", "tests/per_sample/test_convolution.py"),
    ),
    "memory": Room("memory", ("tests/memory",)),
}


def sample(source: Path, count: int, seed: int) -> list[MutationSpec]:
    """`count` mutants of the files in `source`, no two of them in one place."""
    paths = sorted(source.rglob("*.py")) if source.is_dir() else [source]
    with tempfile.TemporaryDirectory() as folder, use_db(f"{folder}/all.sqlite") as database:
        init(paths, database, {})
        found = [item.mutations[0] for item in database.work_items]

    def drawn(spec: MutationSpec) -> str:
        place = f"{seed} {spec.module_path.name} {spec.operator_name} {spec.occurrence}"
        return hashlib.sha256(place.encode()).hexdigest()

    chosen: dict[tuple[Path, tuple[int, int]], MutationSpec] = {}
    for spec in sorted(found, key=drawn):
        if not LEFT_OUT.search(spec.operator_name):
            chosen.setdefault((spec.module_path, spec.start_pos), spec)
    return list(chosen.values())[:count]


def command(room: Room) -> str:
    """The tests of a room, stopped at the first failure or when their time is up."""
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    tests = shlex.join([*pytest, *room.tests])
    return shlex.join(["sh", "-c", f"ulimit -t {SECONDS}; exec {tests}"])


def ask(name: str, count: int, seed: int, out: Path) -> None:
    """Try the mutants of one room, in the copy that is the current folder."""
    room, file = ROOMS[name], out / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    told: dict[str, dict[str, str]] = {}
    if not known:
        subprocess.run(shlex.split(command(room)), check=True, stdout=subprocess.DEVNULL)
    for spec in sample(Path("src/retain") / room.source, count, seed):
        line, column = spec.start_pos
        digest = hashlib.sha256(spec.module_path.read_bytes()).hexdigest()
        key = f"{spec.module_path}:{line}:{column} {spec.operator_name.removeprefix('core/')}"
        before = known.get(key)
        if before and before["digest"] == digest and before["outcome"] == "killed":
            told[key] = before
            continue
        result = mutate_and_test([spec], command(room), timeout=10 * SECONDS)
        told[key] = {
            "outcome": (result.test_outcome or result.worker_outcome).value,
            "digest": digest,
            "change": result.diff or "",
        }
        print(f"{told[key]['outcome']:9} {key}", flush=True)
        file.write_text(json.dumps({**known, **told}, indent=1))
    file.write_text(json.dumps(told, indent=1))
    killed = sum(each["outcome"] != "survived" for each in told.values())
    print(f"{name}: {killed} of {len(told)} killed", flush=True)


def main() -> None:
    """Copy the tree, and ask room by room."""
    reading = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reading.add_argument("--out", type=Path, required=True, help="folder for what was found")
    reading.add_argument("--only", nargs="*", choices=ROOMS, default=list(ROOMS))
    reading.add_argument("--count", type=int, default=25, help="mutants of each room")
    reading.add_argument("--seed", type=int, default=0)
    reading.add_argument("--tree", type=Path, default=Path(), help="the source tree to look at")
    asked = reading.parse_args()
    out, tree = asked.out.resolve(), asked.tree.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as copy:
        for part in COPIED:
            copied = shutil.copytree if (tree / part).is_dir() else shutil.copy2
            copied(tree / part, Path(copy) / part)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = f"{copy}/src"
        for name in asked.only:
            ask(name, asked.count, asked.seed, out)
        os.chdir(tree)


if __name__ == "__main__":
    main()
