"""All that is tried, in pieces whose figures are kept, and the table of what came of it."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile.values import FORGED, NOTED, Tally

COLUMNS = (
    "refused",
    "accepted unchanged",
    "accepted with another value",
    "foreign traceback",
    "lost",
)
ASIDE = {"tried", "left behind", FORGED, NOTED}


@dataclass(frozen=True)
class Trial:
    """Something that is tried again and again.

    Attributes:
        name: behind `--only`.
        what: in the table.
        where: module and function, which takes a count, a seed and an empty folder.
        short: how often in the short run.
        long: how often in the long run.
        piece: how often at most in one piece.
    """

    name: str
    what: str
    where: str
    short: int
    long: int
    piece: int

    def pieces(self, long: bool) -> list[tuple[int, int]]:
        """A seed and a count for each piece."""
        left, found = self.long if long else self.short, []
        while left > 0:
            found.append((len(found), min(self.piece, left)))
            left -= self.piece
        return found

    def done(self, count: int, seed: int) -> dict[str, Any]:
        """The figures of one piece, and its first few surprises."""
        module, function = self.where.split(":")
        tried = getattr(importlib.import_module(f"tests.hostile.{module}"), function)
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), chdir(folder):
            warnings.simplefilter("ignore")
            (Path(folder) / "here").mkdir()
            tally: Tally = tried(count, seed, Path(folder) / "here")
        tally["tried"] = tally["tried"] or tally.total()
        return {"tally": tally, "kept": tally.kept, "seconds": time.process_time() - begun}


TRIALS = (
    Trial("memories", "files of memories, importance and passports",
          "memories:try_files", 100, 10_000, 500),
    Trial("results", "`results.json`", "results:try_results", 60, 2000, 500),
    Trial("checkpoints", "checkpoints", "results:try_checkpoints", 60, 2000, 500),
    Trial("studies", "`study.json`", "studies:try_studies", 60, 2000, 500),
    Trial("weights", "files of weights for repair, forecast and `--weights`",
          "weights:try_weights", 60, 2000, 500),
    Trial("commands", "command lines", "commands:try_commands", 40, 1000, 100),
    Trial("api", "arguments of the API", "api:try_calls", 100, 2500, 500),
    Trial("run", "SIGKILL of `retain run`", "killed:try_run", 3, 100, 20),
    Trial("study", "SIGKILL of `retain study`", "killed:try_study", 3, 100, 20),
    Trial("save", "SIGKILL of `memory.save`", "killed:try_save", 5, 100, 50),
    Trial("serving", "requests from 8 threads, observed", "threads:try_serving", 320, 32_000, 3200),
    Trial("borrowing", "`borrowed()` by 4 threads", "threads:try_borrowing", 80, 2000, 500),
    Trial("disk", "full disk: save, run, report", "full_disk:try_full_disk", 6, 90, 30),
)  # fmt: skip


def run(trials: Iterable[Trial], *, long: bool, kept: Path | None) -> list[tuple[Trial, Tally]]:
    """What came of each trial; pieces that are in the folder `kept` are not done again."""
    found = []
    for trial in trials:
        total = Tally()
        for seed, count in trial.pieces(long):
            piece = _piece(trial, seed, count, kept)
            total.update(piece["tally"])
            total.kept += piece["kept"]
        print(f"{trial.what}: {total.line()}", *total.kept, sep="\n", flush=True)
        found.append((trial, total))
    return found


def _piece(trial: Trial, seed: int, count: int, kept: Path | None) -> dict[str, Any]:
    path = None if kept is None else kept / f"{trial.name}-{count}-{seed}.json"
    if path is not None and path.exists():
        known: dict[str, Any] = json.loads(path.read_bytes())
        return known
    try:
        piece = trial.done(count, seed)
    except Exception as error:
        if type(error).__name__ != "NoTmpfsError":
            raise
        print(f"{trial.what}: not tried. {error}")
        return {"tally": {}, "kept": []}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(piece))
    return piece


def surprises(tally: Tally) -> dict[str, int]:
    """What must not happen, and did."""
    usual = ASIDE | {"refused", "accepted unchanged", "carried out"}
    found = {kind: count for kind, count in tally.items() if kind not in usual and count}
    if tally["left behind"]:
        found["left behind"] = tally["left behind"]
    return found


def table(found: Iterable[tuple[Trial, Tally]]) -> str:
    """The table of docs/reliability.md."""
    lines = [
        "| | tried | refused | accepted unchanged, or done | accepted with another value "
        "| foreign tracebacks | lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for trial, tally in found:
        counts = [tally["tried"], *(tally[kind] for kind in COLUMNS)]
        counts[2] += tally["carried out"]
        lines.append(f"| {trial.what} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    return "\n".join(lines)


if os.name == "nt":  # what kills, and what mounts
    TRIALS = tuple(t for t in TRIALS if t.name not in ("run", "study", "save", "disk"))
