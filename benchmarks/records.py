"""What was measured: rows, the file that keeps them, and what the machine was.

A file belongs to one benchmark and one machine. What is measured again replaces its row, so that a
slow machine can go through the cases in pieces: `--only NAME --json FILE`, as often as it takes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

THREADS = 2
WIDTH = 124  # of tables, also where the output is no terminal
PLAIN = "plain forward + backward"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "opacus", "backpack-for-pytorch")


@dataclass(frozen=True)
class Row:
    """One number and what it is held against.

    Attributes:
        model: of which model, and how many samples, or which piece of work.
        work: what was measured.
        against: what it is compared with.
        measured: the number; None where it could not be had.
        unit: "×" for ratios, "× P" for memory in multiples of the parameters, "s".
        target: what it should be at most, or at least; None for comparison only.
        at_least: whether the target is a floor.
        low: the first quartile over the rounds.
        high: the third quartile.
        base: what `against` itself took, in milliseconds or in bytes.
        rounds: how many rounds the median is of.
        reason: why there is no number.
        at: where on a curve, if it is a point of one.
    """

    model: str
    work: str
    against: str
    measured: float | None
    unit: str = "×"
    target: float | None = None
    at_least: bool = False
    low: float | None = None
    high: float | None = None
    base: float | None = None
    rounds: int | None = None
    reason: str = ""
    at: float | None = None

    @property
    def key(self) -> tuple[str, str, float | None]:
        """By what a row is known."""
        return self.model, self.work, self.at

    @property
    def met(self) -> bool | None:
        """Whether the target is reached, at the two decimals that are shown; None without one."""
        if self.target is None or self.measured is None:
            return None
        seen = round(self.measured, 2)
        return seen >= self.target if self.at_least else seen <= self.target

    @property
    def shown(self) -> str:
        """The number and its unit."""
        if self.measured is None:
            return "—"
        digits = 3 if self.unit == "s" else 2
        return f"{self.measured:.{digits}f} {self.unit}"

    @property
    def goal(self) -> str:
        """The target as one would write it."""
        return "" if self.target is None else f"{'≥' if self.at_least else '≤'} {self.target:g}"


def of_ratios(model: str, work: str, against: str, ratios: Sequence[float], **more: Any) -> Row:
    """A row whose number is the median of some rounds' ratios."""
    low, middle, high = quartiles(ratios)
    rounds = len(ratios)
    return Row(model, work, against, middle, low=low, high=high, rounds=rounds, **more)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def machine() -> dict[str, Any]:
    """The processor, the number of threads, and the versions of what computes."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"machine": processor(), "threads": THREADS, "versions": versions}


def processor() -> str:
    """What the operating system calls the processor, and how many of its cores there are."""
    cpuinfo, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    cores = 0
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
        name, cores = names[0] if names else name, len(names)
    return f"{name}, {cores} cores, {platform.system()}" if cores else f"{name}"


def keep(rows: Iterable[Row], file: Path) -> None:
    """Put the rows into the file, in place of those of the same name.

    Rows of another machine, number of threads or version do not stay beside them.
    """
    about, today = machine(), datetime.date.today().isoformat()
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else about | {"rows": []}
    if any(kept.get(key) != value for key, value in about.items()):
        print(f"{file} is of another machine or other versions: begun anew.", file=sys.stderr)
        kept = {"rows": []}
    renewed = {row.key: asdict(row) | {"date": today} for row in rows}
    merged = [renewed.pop(key(row), row) for row in kept["rows"]]
    written = about | {"date": today, "rows": [*merged, *renewed.values()]}
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(written, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def key(row: dict[str, Any]) -> tuple[str, str, float | None]:
    """By what a row in a file is known."""
    return row["model"], row["work"], row.get("at")


def read(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """What is known about the machine, and the rows; nothing where there is no file."""
    if not file.exists():
        return {}, []
    kept = json.loads(file.read_text(encoding="utf-8"))
    known = set(Row.__dataclass_fields__)
    rows = [Row(**{k: v for k, v in row.items() if k in known}) for row in kept.pop("rows")]
    return kept, rows


def arguments(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    options.add_argument("--only", nargs="+", default=[], help="what has this in its name")
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument("--json", type=Path, help="put the rows into this file, beside others")
    return options


def show(rows: Sequence[Row], title: str, caption: str = "") -> None:
    """Print measured and target, with what was missed in red."""
    table = Table(title=f"{title}, {THREADS} threads", caption=caption or None)
    for name in ("model", "work", "against"):
        table.add_column(name, overflow="fold")
    for name in ("base", "measured", "quartiles", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        colour = {True: "green", False: "red", None: "default"}[row.met]
        table.add_row(
            *(row.model, row.work, row.against, base(row)),
            f"[{colour}]{row.shown}[/]",
            "" if row.low is None or row.high is None else f"{row.low:.2f} – {row.high:.2f}",
            row.goal,
        )
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)
    for reason in sorted({f"{row.work}, {row.model}: {row.reason}" for row in rows if row.reason}):
        console.print(reason, markup=False)


def base(row: Row) -> str:
    """What the row is held against took: milliseconds, or bytes for memory."""
    if row.base is None:
        return ""
    return f"{row.base / 2**20:.0f} MiB" if row.unit == "× P" else f"{row.base:.1f} ms"
