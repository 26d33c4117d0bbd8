"""What protection costs: the penalty's own arithmetic, and whole training steps.

python benchmarks/penalty.py [--only NAME …] [--rounds 9] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import retain
from cases import CASES, Case, torchvision
from measure import THREADS, Run, Times, interleaved, peak_bytes, peak_in_fresh_process
from retain.batches import Batch
from retain.outputs import first_tensor

STREAM_TARGET, NAIVE_TARGET, STEP_TARGET = 1.5, 1 / 3, 1.03
FORMS = ("gradient", "proximal", "adaptive")
STREAM = "stream: read 3, write 1"
ARITHMETIC = "AlexNet's weights"
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "AlexNet": lambda model: SGD(model.parameters(), lr=1e-6, momentum=0.9),
    "ResNet-18": lambda model: SGD(model.parameters(), lr=1e-6, momentum=0.9),
    "GPT-2 6×384, tied": lambda model: AdamW(model.parameters(), lr=1e-6),
}


@dataclass(frozen=True)
class Row:
    """One piece of work as a ratio to what it is held against; without a target, for comparison."""

    model: str
    work: str
    against: str
    against_ms: float
    ratio: float
    target: float | None
    more_memory: float | None = None  # at its peak, beside its result, in multiples of the weights


class Standing(SGD):
    """An optimizer whose step does nothing: what remains is the price of what is attached."""

    def step(self, closure: object = None) -> None:
        """Nothing."""


def remembered(model: nn.Module) -> retain.MAS:
    """A memory with an Ω for every weight, and the weights away from their anchor."""
    memory = retain.MAS(model, strength=1e-3)
    omega = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    memory.observed = retain.Importance(omega, samples=1)
    memory.consolidate()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=1e-3)
    return memory


def stream() -> Run:
    """The fastest that torch offers: addcmul, three arrays as large as AlexNet into a fourth."""
    size = sum(p.numel() for p in torchvision("alexnet")().parameters())
    one, two, three, out = (torch.rand(size) for _ in range(4))
    return lambda: torch.addcmul(one, two, three, out=out)


def attached(form: str) -> Run:
    """All that an attached memory does in a step."""
    model = torchvision("alexnet")()
    memory = remembered(model)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer = Standing(model.parameters(), lr=1e-3)
    handle = memory.attach(optimizer, form=form)

    def run() -> object:
        optimizer.step()
        return handle

    return run


def by_penalty(model: nn.Module, memory: retain.MAS) -> Run:
    """`penalty()` and its gradient."""
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(memory.penalty(), parameters)


def by_formula(model: nn.Module, memory: retain.MAS) -> Run:
    """The penalty as it is written, and its gradient by autograd."""
    parameters, (term,) = dict(model.named_parameters()), memory._state.terms
    star, omega = term.anchor, term.importance

    def run() -> object:
        squares = (omega[n] * (p - star[n]) ** 2 for n, p in parameters.items())
        total = memory.strength * sum(square.sum() for square in squares)
        return torch.autograd.grad(total, list(parameters.values()))

    return run


SCALARS = {"penalty()": by_penalty, "naive autograd": by_formula}


def arithmetic(rounds: int) -> list[Row]:
    """The forms against the stream, and the scalar against the formula as it is written."""
    forms = FORMS[:2]  # the third is the second where there is no Adam
    times = timed({STREAM: stream(), **{form: attached(form) for form in forms}}, rounds)
    rows = [
        Row(
            *(ARITHMETIC, f"attach, {form}", STREAM, times.milliseconds(STREAM)),
            *(times.ratio(form, STREAM), STREAM_TARGET if form == "gradient" else None),
        )
        for form in forms
    ]
    model = torchvision("alexnet")()
    memory = remembered(model)
    times = timed({name: make(model, memory) for name, make in SCALARS.items()}, rounds)
    naive, milliseconds = "naive autograd", times.milliseconds("naive autograd")
    for name in SCALARS:
        ratio, target = times.ratio(name, naive), None if name == naive else NAIVE_TARGET
        more = peak_in_fresh_process(__file__, ["--peak", name])
        size = 4 * sum(p.numel() for p in model.parameters())
        rows.append(Row(ARITHMETIC, name, naive, milliseconds, ratio, target, more / size - 1))
    return rows


def print_peak(name: str) -> None:
    """How much more memory is held at once than before, gradients included."""
    torch.set_num_threads(THREADS)
    model = torchvision("alexnet")()
    run = SCALARS[name](model, remembered(model))
    ctypes.CDLL(None).malloc_trim(0)  # what was freed leaves the process (glibc),
    Path("/proc/self/clear_refs").write_text("5")  # and the peak so far is forgotten (Linux)
    before = peak_bytes()
    run()
    print(peak_bytes() - before)


def steps(case: Case, rounds: int) -> list[Row]:
    """A training step with each form attached, against the same step without."""
    model, raw = case.make()
    model.train()
    memory, batch = remembered(model), Batch.of(raw)

    def stepping(optimizer: Optimizer) -> Run:
        def run() -> None:
            optimizer.zero_grad()
            first_tensor(batch.call(model)).square().mean().backward()
            optimizer.step()

        return run

    optimizers = {way: OPTIMIZERS[case.name](model) for way in ("plain", *FORMS)}
    handles = [memory.attach(optimizers[form], form=form) for form in FORMS]
    times = timed({way: stepping(optimizer) for way, optimizer in optimizers.items()}, rounds)
    del handles
    return [
        Row(
            *(f"{case.name}, n = {case.samples}", f"step, {form}", "the step unprotected"),
            *(times.milliseconds("plain"), times.ratio(form, "plain"), STEP_TARGET),
        )
        for form in FORMS
    ]


def timed(ways: dict[str, Run], rounds: int) -> Times:
    """The seconds of every way; none may fail."""
    times = interleaved(ways, rounds=rounds)
    if times.failed:
        raise SystemExit(str(times.failed))
    return times


def table(rows: list[Row]) -> Table:
    """The rows, with what was missed in red."""
    shown = Table(title=f"Protection, {THREADS} threads, medians over rounds")
    for name in ("model", "work", "against"):
        shown.add_column(name, no_wrap=True)
    for name in ("ms", "ratio", "target", "+ P"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.caption = "+ P: peak memory beside the result, in multiples of the weights"
    for row in rows:
        colour = "default" if row.target is None else "green" if row.ratio <= row.target else "red"
        shown.add_row(
            *(row.model, row.work, row.against, f"{row.against_ms:.1f}"),
            f"[{colour}]{row.ratio:.3f}[/]",
            "" if row.target is None else f"≤ {row.target:.2f}",
            "" if row.more_memory is None else f"{row.more_memory:.2f}",
        )
    return shown


def measured(only: list[str], rounds: int) -> list[Row]:
    """All rows, or those of the models whose name contains one of the words."""

    def wanted(name: str) -> bool:
        return not only or any(word.lower() in name.lower() for word in only)

    rows = arithmetic(rounds) if wanted(ARITHMETIC) else []
    for case in CASES:
        if case.name in OPTIMIZERS and wanted(case.name):
            rows += steps(case, rounds)
    if not rows:
        raise SystemExit(f"Nothing is called {only}. Known: {[ARITHMETIC, *OPTIMIZERS]}.")
    return rows


def main() -> None:
    """Measure, print, and write down."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--only", nargs="+", default=[], help="models whose name contains this")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--json", type=Path, help="write the rows to this file")
    options.add_argument("--peak", choices=SCALARS, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.peak:
        print_peak(given.peak)
        return
    rows = measured(given.only, given.rounds)
    console = Console()
    console.width = max(console.width, 110)
    console.print(table(rows))
    if given.json:
        report = {"threads": THREADS, "rounds": given.rounds, "rows": [asdict(r) for r in rows]}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
