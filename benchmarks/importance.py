"""What exact importance costs: an Ω pass against a plain forward + backward, and against others.

    python benchmarks/importance.py [--all] [--only NAME …] [--parts own others memory]

own: Σ|g| (Ω), Σg² (power 2), and a new memory's first batch, with its probe and self-check.
others: other ways to the same Σ|g|; what cannot run says why. memory: the peak of fresh processes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

import retain
from cases import CASES, Case, chosen
from measure import FEW, SLOW, THREADS, Run, forget_peak, interleaved, peak_bytes, reason
from measure import peak_in_fresh_process as fresh
from records import PLAIN, Row, arguments, keep, of_ratios, show
from ways import OTHERS, OWN

PARTS = ("own", "others", "memory")
FIRST_TARGET, MEMORY_TARGET = 2.0, 2.0
TOLERANCE = 1e-3  # of another way's result, relative to ours
GAIN = "Ω, how many times as fast"
PEAK, FIRST_PEAK = "Ω, more peak memory", "Ω, first call, more peak memory"
WHEN = {FIRST_PEAK: "first", PEAK: "later"}
CAPTION = (
    f"Medians over rounds. Other ways do only {FEW} rounds where one takes more than {SLOW:.0f} × "
    "a plain pass."
)


def own(case: Case, rounds: int) -> list[Row]:
    """Our passes against the plain one."""
    model, raw = case.make()
    times = interleaved({name: make(model, raw) for name, make in OWN.items()}, rounds=rounds)
    if times.failed:
        raise SystemExit(f"{case.name}: {times.failed}")
    plain = times.milliseconds("plain")
    targets = {"Ω": case.target, "Ω, power 2": case.target, "Ω, first call": FIRST_TARGET}
    return [
        of_ratios(
            *(case.label, name, PLAIN, times.ratios(name, "plain")), target=target, base=plain
        )
        for name, target in targets.items()
    ]


def others(case: Case, rounds: int) -> list[Row]:
    """The other ways against the plain pass."""
    model, raw = case.make()
    ways, failed = {"plain": OWN["plain"](model, raw)}, {}
    ours = retain.MAS(model).observe([raw], progress=False).observed
    for name, make in OTHERS.items():
        try:
            ways[name] = agreeing(make(copy.deepcopy(model), raw), ours)
        except Exception as error:  # not installed, or not able to take this model
            failed[name] = reason(error)
    times = interleaved(ways, rounds=rounds, patient=OTHERS)
    failed |= times.failed
    plain = times.milliseconds("plain")
    return [
        Row(case.label, name, PLAIN, None, reason=failed[name])
        if name in failed
        else of_ratios(case.label, name, PLAIN, times.ratios(name, "plain"), base=plain)
        for name in OTHERS
    ]


def gains(rows: Iterable[Row]) -> list[Row]:
    """For each case with both: how many times as long as an Ω pass the fastest other way takes."""
    ratios = {(row.model, row.work): row.measured for row in rows if row.measured is not None}
    found = []
    for case in CASES:
        ran = {name: ratios[case.label, name] for name in OTHERS if (case.label, name) in ratios}
        omega = ratios.get((case.label, "Ω"))
        if ran and omega:
            fastest = min(ran, key=ran.__getitem__)
            aim = {"target": case.gain, "at_least": True}
            found.append(Row(case.label, GAIN, fastest, ran[fastest] / omega, **aim))
    return found


def agreeing(run: Run, ours: retain.Importance) -> Run:
    """The way, which is compared with our result when it goes for the first time."""
    checked = False

    def running() -> None:
        nonlocal checked
        sums = run()
        if not checked:
            assert isinstance(sums, dict)
            error = sum(norm(sums[name] / ours.samples - mean) ** 2 for name, mean in ours.items())
            size = sum(norm(mean) ** 2 for mean in ours.values())
            if not error <= TOLERANCE**2 * size:
                raise ValueError(f"its Σ|g| differs from ours by {(error / size) ** 0.5:.1e}")
            checked = True

    return running


def norm(tensor: Tensor) -> float:
    """‖t‖₂."""
    return float(torch.linalg.vector_norm(tensor.double()))


def memory(case: Case, repeats: int = 3) -> list[Row]:
    """How much more Ω passes hold at their peak than plain passes, in multiples of P."""
    size = sum(p.numel() * p.element_size() for p in case.make()[0].parameters())
    rows = []
    for work, when in WHEN.items():
        plain, omega = (
            fresh(__file__, ["--peak", case.name, way, when], repeats=repeats)
            for way in ("plain", "Ω")
        )
        more = (omega - plain) / size
        aim = {"target": MEMORY_TARGET, "base": plain, "rounds": repeats}
        rows.append(Row(case.label, work, PLAIN, more, "× P", **aim))
    return rows


def print_peak(name: str, way: str, when: str) -> None:
    """Go one way, and say what that took beside model and batch: at first, or from then on."""
    torch.set_num_threads(THREADS)
    model, raw = next(case for case in CASES if case.name == name).make()
    OWN[way](torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.rand(3, 2))()  # loads its code
    forget_peak()
    before = peak_bytes()
    run = OWN[way](model, raw)
    run()
    if when == "later":
        forget_peak()
        run()
        run()
    print(peak_bytes() - before)


def main() -> None:
    """Measure, print, and write down."""
    options = arguments(__doc__, rounds=7)
    options.add_argument("--all", action="store_true", help="every model, not only the core")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--peak", nargs=3, help="(of a fresh process: model, way, first or later)")
    given = options.parse_args()
    if given.peak:
        print_peak(*given.peak)
        return
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # of other ways
    rows: list[Row] = []
    for case in chosen(given.only, every=given.all):
        rows += own(case, given.rounds) if "own" in given.parts else []
        rows += others(case, given.rounds) if "others" in given.parts else []
        rows += memory(case) if "memory" in given.parts else []
        if given.json:
            keep(rows, given.json)
    show([*rows, *gains(rows)], "Exact importance", CAPTION)


if __name__ == "__main__":
    main()
