"""A table of the zoo: `python -m tests.per_sample.zoo [PATTERN …] [--slow] [--unchecked]`."""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from retain.borrowed import borrowed

from . import REGISTRY, TOLERANCE, Specimen, Watched


def main() -> None:
    """Print one row per model: worst error in each precision and power, routes, price."""
    parser = argparse.ArgumentParser(description="The engine on every model of the zoo.")
    parser.add_argument("patterns", nargs="*", default=["*"], help="of names or families")
    parser.add_argument("--slow", action="store_true", help="the large models as well")
    parser.add_argument("--unchecked", action="store_true", help="without the engine's self-check")
    parser.add_argument("--samples", type=int, default=16, help="batch size of the price")
    asked = parser.parse_args()
    chosen = [s for s in REGISTRY.values() if _wanted(s, asked.patterns) and asked.slow >= s.slow]
    name = Column("model", no_wrap=True)
    errors = [Column(head, no_wrap=True) for head in ("64¹", "64²", "32¹", "32²")]
    title = "relative error by precision and power, and price in plain passes"
    table = Table(name, *errors, "routes", "warned", Column("price", justify="right"), title=title)
    console, inexact = Console(), 0
    torch.set_num_threads(1)
    for specimen in track(chosen, console=console, transient=True):
        row, exact = _row(specimen, check=not asked.unchecked, samples=asked.samples)
        table.add_row(*row)
        inexact += not exact
    console.print(table)
    console.print(f"{len(chosen) - inexact} of {len(chosen)} exact")


def _wanted(specimen: Specimen, patterns: list[str]) -> bool:
    names = (specimen.name, specimen.family)
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _row(specimen: Specimen, *, check: bool, samples: int) -> tuple[list[str], bool]:
    cells, exact, routes, price = [], True, "", ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for dtype in (torch.float64, torch.float32):
            for power in (1, 2):
                try:
                    watched = Watched(specimen, dtype, power, check=check)
                    worst = max(watched.errors(specimen.batch(dtype=dtype)).values())
                    fine = worst <= TOLERANCE[dtype]
                    cells.append(f"[{'green' if fine else 'red'}]{worst:.0e}")
                    if not routes:
                        counts = Counter(watched.per_sample.routes.values())
                        routes = ", ".join(f"{n} {route}" for route, n in counts.most_common())
                    if dtype is torch.float32 and power == 1:
                        price = f"{_price(watched, samples):.1f}"
                except Exception as error:
                    fine = False
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    cells.append(f"[red]{type(error).__name__} {last.name}:{last.lineno}")
                exact &= fine
    warned = sum("one sample at a time" in str(w.message) for w in caught)
    return [specimen.name, *cells, routes, str(warned or ""), price], exact


def _price(watched: Watched, samples: int) -> float:
    """Time of the engine, once it knows the model, over a plain forward and backward."""
    batch = watched.specimen.batch(samples, watched.dtype)

    def plain() -> None:
        with borrowed(watched.model):
            score = watched.score(watched.output(batch.call(watched.model)), None).sum()
            torch.autograd.grad(score, list(watched.parameters.values()), allow_unused=True)

    return _median(lambda: watched.engine(batch)) / _median(plain)


def _median(run: Callable[[], object], rounds: int = 3) -> float:
    """Processor time, which other programs do not change as much; one thread."""
    run()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return sorted(seconds)[rounds // 2]


if __name__ == "__main__":
    main()
