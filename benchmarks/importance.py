"""What exact importance costs: an Ω pass against a plain forward + backward, and against others.

python benchmarks/importance.py [--all] [--only NAME …] [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import retain
from cases import CASES, Case, chosen
from measure import THREADS, interleaved, peak_bytes, peak_in_fresh_process, reason
from ways import OTHERS, OWN

WIDTH = 132  # of the table, also where the output is no terminal


@dataclass(frozen=True)
class Row:
    """One case: ratios are to the plain pass; a way that could not run has its reason instead."""

    model: str
    samples: int
    parameters: int
    plain_ms: float
    omega: float
    first: float
    others: dict[str, float | str]
    target: float
    plain_peak: int | None
    omega_peak: int | None

    @property
    def fastest_other(self) -> float | None:
        """The ratio of the fastest way that is not ours."""
        return min((v for v in self.others.values() if not isinstance(v, str)), default=None)

    @property
    def more_memory(self) -> float | None:
        """How much more the Ω pass holds at its peak than the plain pass, in multiples of P."""
        if self.plain_peak is None or self.omega_peak is None:
            return None
        return (self.omega_peak - self.plain_peak) / (4 * self.parameters)


def measured(case: Case, *, rounds: int, others: bool, memory: bool) -> Row:
    """The case, measured."""
    model, raw = case.make()
    makers = OWN | (OTHERS if others else {})
    ways, failed = {}, {}
    for name, make in makers.items():
        try:
            ways[name] = make(copy.deepcopy(model) if name in OTHERS else model, raw)
        except Exception as error:  # not installed, or not able to take this model
            failed[name] = reason(error)
    times = interleaved(ways, rounds=rounds)
    failed |= times.failed
    for name in OWN:
        if name in failed:
            raise SystemExit(f"{case.name}: {name} failed: {failed[name]}")
    peaks = {name: peak(case, name) if memory else None for name in ("plain", "omega")}
    return Row(
        model=case.name,
        samples=case.samples,
        parameters=sum(p.numel() for p in model.parameters()),
        plain_ms=times.milliseconds("plain"),
        omega=times.ratio("omega", "plain"),
        first=times.ratio("first", "plain"),
        others={n: failed.get(n) or times.ratio(n, "plain") for n in makers if n in OTHERS},
        target=case.target,
        plain_peak=peaks["plain"],
        omega_peak=peaks["omega"],
    )


def peak(case: Case, way: str) -> int:
    """The peak memory of a fresh process that goes this way three times, the first included."""
    return peak_in_fresh_process(__file__, ["--peak", case.name, way])


def print_peak(name: str, way: str) -> None:
    """Go one way, three times, and say what it took."""
    torch.set_num_threads(THREADS)
    model, raw = next(case for case in CASES if case.name == name).make()
    run = OWN[way](model, raw)
    for _ in range(3):
        run()
    print(peak_bytes())


def table(rows: list[Row]) -> Table:
    """The rows, with what was missed in red."""
    shown = Table(title=f"Ω pass against a plain forward + backward, {THREADS} threads")
    shown.add_column("model", no_wrap=True)
    shown.caption = (
        "ratios to plain, medians over rounds; first: a new memory's first batch, with its probe "
        "and self-check;\ngain: the fastest other way / Ω; + P: more peak memory than plain, in "
        "multiples of the parameters"
    )
    columns = ["n", "plain ms", "Ω", "target", "first", *OTHERS, "gain"]
    columns += ["plain MiB", "Ω MiB", "+ P"]
    for name in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        met = "green" if row.omega <= row.target else "red"
        best = row.fastest_other
        shown.add_row(
            row.model,
            str(row.samples),
            f"{row.plain_ms:.1f}",
            f"[{met}]{row.omega:.2f}[/]",
            f"≤ {row.target:.2f}",
            f"{row.first:.1f}",
            *(cell(row.others.get(name)) for name in OTHERS),
            cell(None if best is None else best / row.omega),
            *(cell(b and b / 2**20, 0) for b in (row.plain_peak, row.omega_peak)),
            cell(row.more_memory, 1),
        )
    return shown


def cell(value: float | str | None, digits: int = 2) -> str:
    """A number, a dash for a failure (whose reason stands below), or nothing."""
    if value is None:
        return ""
    return "—" if isinstance(value, str) else f"{value:.{digits}f}"


def why(rows: list[Row]) -> list[str]:
    """Why ways could not run: a line for each reason, with the models that it stopped."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, value in row.others.items():
            if isinstance(value, str):
                reasons.setdefault((name, value), []).append(row.model)
    return [f"{name} on {', '.join(models)}: {text}" for (name, text), models in reasons.items()]


def main() -> None:
    """Measure, print, and write down."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--all", action="store_true", help="every case, not only the core")
    options.add_argument("--only", nargs="+", default=[], help="cases whose name contains this")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--no-others", action="store_true", help="leave the competitors out")
    options.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    options.add_argument("--json", type=Path, help="write the rows to this file")
    options.add_argument("--peak", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.peak:
        print_peak(*given.peak)
        return
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # of a competitor
    console, rows = Console(), []
    console.width = max(console.width, WIDTH)
    for case in chosen(given.only, every=given.all):
        with console.status(f"{case.name}, n = {case.samples}"):
            rows.append(
                measured(
                    case,
                    rounds=given.rounds,
                    others=not given.no_others,
                    memory=not given.no_memory,
                )
            )
    console.print(table(rows))
    console.print(*why(rows), sep="\n")
    if given.json:
        versions = {"retain": retain.__version__, "torch": torch.__version__}
        about = {"machine": platform.processor() or platform.machine(), "threads": THREADS}
        report = {**about, "versions": versions, "rounds": given.rounds}
        report["rows"] = [asdict(row) for row in rows]
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
