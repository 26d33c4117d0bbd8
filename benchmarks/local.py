"""What the local rule costs against a plain forward pass, observing and while serving.

python benchmarks/local.py [--only NAME …] [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import retain
from cases import Case, chosen
from measure import THREADS, interleaved
from retain.batches import Batch

EVERY = 10
OBSERVE_TARGET, SERVE_TARGET = 2.0, 1.1


@dataclass(frozen=True)
class Row:
    """One case: ratios to a plain forward pass under no_grad, and to `EVERY` of them."""

    model: str
    samples: int
    plain_ms: float
    observe: float
    serve: float


def measured(case: Case, *, rounds: int) -> Row:
    """The case, measured."""
    model, raw = case.make()
    batch = Batch.of(raw)

    def plain() -> None:
        with torch.no_grad():
            batch.call(model)

    def calls() -> None:
        for _ in range(EVERY):
            plain()

    ways = {"plain": plain, "observe": observing(model, raw)}
    times = interleaved(ways, rounds=rounds)
    served = interleaved({"plain": calls, "serve": serving(model, calls)}, rounds=rounds)
    for failed in (times.failed, served.failed):
        if failed:
            raise SystemExit(f"{case.name}: {failed}")
    return Row(
        model=case.name,
        samples=case.samples,
        plain_ms=times.milliseconds("plain"),
        observe=times.ratio("observe", "plain"),
        serve=served.ratio("serve", "plain"),
    )


def observing(model: nn.Module, raw: object) -> Callable[[], object]:
    """`observe`, from the second batch on."""
    memory = retain.LocalMAS(model)
    memory.observe([raw], progress=False)
    return lambda: memory.observe([raw], progress=False)


def serving(model: nn.Module, calls: Callable[[], None]) -> Callable[[], object]:
    """`EVERY` calls of which one is observed."""
    memory = retain.LocalMAS(model)

    def run() -> None:
        with memory.observing(every=EVERY):
            calls()

    return run


def table(rows: list[Row]) -> Table:
    """The rows, with what was missed in red."""
    shown = Table(title=f"The local rule against a plain forward, no_grad, {THREADS} threads")
    shown.add_column("model", no_wrap=True)
    for name in ("n", "forward ms", "observe", "target", f"every={EVERY}", "target"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row.model,
            str(row.samples),
            f"{row.plain_ms:.1f}",
            *judged(row.observe, OBSERVE_TARGET),
            *judged(row.serve, SERVE_TARGET),
        )
    return shown


def judged(ratio: float, target: float) -> tuple[str, str]:
    """The ratio in green or red, and its target."""
    return f"[{'green' if ratio <= target else 'red'}]{ratio:.2f}[/]", f"≤ {target:.2f}"


def main() -> None:
    """Measure, print, and write down."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--all", action="store_true", help="every case, not only the core")
    options.add_argument("--only", nargs="+", default=[], help="cases whose name contains this")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--json", type=Path, help="write the rows to this file")
    given = options.parse_args()
    rows = [measured(c, rounds=given.rounds) for c in chosen(given.only, every=given.all)]
    Console().print(table(rows))
    if given.json:
        report = {"threads": THREADS, "rounds": given.rounds, "rows": [asdict(r) for r in rows]}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
