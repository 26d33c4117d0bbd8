"""What the local rule costs against a plain forward pass, observing and while serving.

python benchmarks/local.py [--all] [--only NAME …] [--rounds 7] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import retain
from cases import Case, chosen
from measure import interleaved
from records import Row, arguments, keep, of_ratios, show
from retain.samples.batches import Batch

EVERY = 10
OBSERVE_TARGET, SERVE_TARGET = 2.0, 1.1
OBSERVE, SERVE = "LocalMAS.observe", f"LocalMAS.observing(every={EVERY})"


def measured(case: Case, *, rounds: int) -> list[Row]:
    """The case, measured: ratios to one forward pass under no_grad, and to `EVERY` of them."""
    model, raw = case.make()
    batch = Batch.of(raw)

    def plain() -> None:
        with torch.no_grad():
            batch.call(model)

    def calls() -> None:
        for _ in range(EVERY):
            plain()

    once = interleaved({"plain": plain, "ours": observing(model, raw)}, rounds=rounds)
    served = interleaved({"plain": calls, "ours": serving(model, calls)}, rounds=rounds, warm_up=1)
    rows = []
    for times, work, against, target in (
        (once, OBSERVE, "plain forward, no_grad", OBSERVE_TARGET),
        (served, SERVE, f"{EVERY} plain forwards", SERVE_TARGET),
    ):
        if times.failed:
            raise SystemExit(f"{case.name}: {times.failed}")
        aim = {"target": target, "base": times.milliseconds("plain")}
        rows.append(of_ratios(case.label, work, against, times.ratios("ours", "plain"), **aim))
    return rows


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


def main() -> None:
    """Measure, print, and write down."""
    options = arguments(__doc__, rounds=7)
    options.add_argument("--all", action="store_true", help="every model, not only the core")
    given = options.parse_args()
    rows: list[Row] = []
    for case in chosen(given.only, every=given.all):
        rows += measured(case, rounds=given.rounds)
        if given.json:
            keep(rows, given.json)
    show(rows, "The local rule")


if __name__ == "__main__":
    main()
