"""What protection costs: the penalty's own arithmetic, and whole training steps.

python benchmarks/penalty.py [--only NAME …] [--rounds 9] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import retain
from cases import CASES, Case, torchvision
from measure import THREADS, Run, Times, forget_peak, interleaved, peak_bytes, peak_in_fresh_process
from records import Row, arguments, keep, of_ratios, show
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor

STREAM_TARGET, NAIVE_TARGET, STEP_TARGET = 1.5, 3.0, 1.03
TEMPORARY_TARGET = 0.1  # of the weights: a part in the cache is far less, a copy is 1
FORMS = ("gradient", "proximal", "adaptive")
STREAM = "stream: read 3, write 1"
ARITHMETIC = "AlexNet's weights"
SMALL = "160 small weights"
ADDED_TARGETS = {"gradient": 1.5, "proximal": 1.5, "adaptive": 2.5}  # × what the plain version adds
STEPS = 10  # of a few hundred microseconds, timed together
Memory = TypeVar("Memory", retain.MAS, retain.EWC)
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "AlexNet": lambda model: SGD(model.parameters(), lr=1e-6, momentum=0.9),
    "ResNet-18": lambda model: SGD(model.parameters(), lr=1e-6, momentum=0.9),
    "GPT-2 6×384, tied": lambda model: AdamW(model.parameters(), lr=1e-6),
}


class Standing(SGD):
    """An optimizer whose step does nothing: what remains is the price of what is attached."""

    def step(self, closure: object = None) -> None:
        """Nothing."""


def remembered(model: nn.Module) -> retain.MAS:
    """A memory with an Ω for every weight, and the weights away from their anchor."""
    return consolidated(retain.MAS(model, strength=1e-3), model)


def consolidated(memory: Memory, model: nn.Module, tasks: int = 1) -> Memory:
    """The memory after so many tasks, each of which moved the weights away from its anchor."""
    for _ in range(tasks):
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
    parameters, star, omega = dict(model.named_parameters()), memory.anchor, memory.importance

    def run() -> object:
        squares = (omega[n] * (p - star[n]) ** 2 for n, p in parameters.items())
        total = memory.strength * sum(square.sum() for square in squares)
        return torch.autograd.grad(total, list(parameters.values()))

    return run


PENALTY, NAIVE = "penalty() and its gradient", "naive sum by autograd"
SCALARS = {PENALTY: by_penalty, NAIVE: by_formula}


def arithmetic(rounds: int) -> list[Row]:
    """The forms against the stream, and the scalar against the formula as it is written."""
    forms = FORMS[:2]  # the third is the second where there is no Adam
    times = timed({STREAM: stream(), **{form: attached(form) for form in forms}}, rounds)
    rows = []
    for form in forms:
        aim = {
            "target": STREAM_TARGET if form == "gradient" else None,
            "base": times.milliseconds(STREAM),
        }
        ratios = times.ratios(form, STREAM)
        rows.append(of_ratios(ARITHMETIC, f"attach, {form} form", STREAM, ratios, **aim))
    model = torchvision("alexnet")()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = remembered(model)
    times = timed({name: make(model, memory) for name, make in SCALARS.items()}, rounds)
    aim = {"target": NAIVE_TARGET, "at_least": True, "base": times.milliseconds(NAIVE)}
    ratios = times.ratios(NAIVE, PENALTY)
    rows.append(of_ratios(ARITHMETIC, f"{PENALTY}, how many times as fast", NAIVE, ratios, **aim))
    for name in SCALARS:
        more = peak_in_fresh_process(__file__, ["--peak", name], repeats=2) / size - 1
        target = TEMPORARY_TARGET if name == PENALTY else None
        rows.append(Row(ARITHMETIC, f"{name}, memory", "its result", more, "× P", target))
    return rows


def small_weights() -> tuple[nn.Module, Optimizer]:
    """A model whose steps are the work of the host, as they are on an accelerator."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(80)))
    model(torch.randn(4, 16)).square().mean().backward()
    return model, AdamW(model.parameters(), lr=1e-6, fused=True)


def by_foreach(form: str) -> Run:
    """A step with the penalty as one would write it in `torch._foreach_*`, without any check."""
    model, optimizer = small_weights()
    parameters, memory = list(model.parameters()), remembered(model)
    omega = [memory.importance[name] for name, _p in model.named_parameters()]
    star = [memory.anchor[name] for name, _p in model.named_parameters()]
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()

    @torch.no_grad()
    def gradient() -> None:
        pull = torch._foreach_mul(torch._foreach_sub(parameters, star), omega)
        torch._foreach_add_([p.grad for p in parameters], pull, alpha=2 * memory.strength)
        optimizer.step()

    @torch.no_grad()
    def proximal() -> None:
        optimizer.step()
        held = torch._foreach_mul(omega, 2 * memory.strength * rate)
        if form == "adaptive":
            states = [optimizer.state[p] for p in parameters]
            unbiased = (1 - 0.999 ** float(states[0]["step"])) ** -0.5
            root = torch._foreach_sqrt([state["exp_avg_sq"] for state in states])
            torch._foreach_mul_(root, unbiased)
            torch._foreach_add_(root, 1e-8)
            torch._foreach_div_(held, root)
        share = torch._foreach_div(held, torch._foreach_add(held, 1.0))
        torch._foreach_lerp_(parameters, star, share)

    return repeated(gradient if form == "gradient" else proximal)


def repeated(step: Callable[[], object]) -> Run:
    """Several steps."""

    def run() -> None:
        for _ in range(STEPS):
            step()

    return run


def small(rounds: int) -> list[Row]:
    """What each form adds to a step, against what a plain version of it adds."""
    rows = []
    for form in FORMS:
        model, optimizer = small_weights()
        handle = remembered(model).attach(optimizer, form=form)
        alone = small_weights()[1]
        ways = {
            "alone": repeated(alone.step),
            "ours": repeated(optimizer.step),
            "plain": by_foreach(form),
        }
        times = timed(ways, 5 * rounds)
        added = [
            (ours - alone) / (plain - alone)
            for ours, plain, alone in zip(
                *(times.seconds[way] for way in ("ours", "plain", "alone"))
            )
        ]
        aim = {"target": ADDED_TARGETS[form], "base": times.milliseconds("plain") / STEPS}
        rows.append(
            of_ratios(
                SMALL, f"what the {form} form adds to a step", "torch._foreach_*", added, **aim
            )
        )
        handle.remove()
    return rows


def print_peak(name: str) -> None:
    """How much more memory is held at once than before, gradients included."""
    torch.set_num_threads(THREADS)
    model = torchvision("alexnet")()
    run = SCALARS[name](model, remembered(model))
    forget_peak()
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
    aim = {"target": STEP_TARGET, "base": times.milliseconds("plain")}
    return [
        of_ratios(
            *(case.label, f"a training step, {form} form", "the same step unprotected"),
            *(times.ratios(form, "plain"),),
            **aim,
        )
        for form in FORMS
    ]


def timed(ways: dict[str, Run], rounds: int) -> Times:
    """The seconds of every way; none may fail."""
    times = interleaved(ways, rounds=rounds)
    if times.failed:
        raise SystemExit(str(times.failed))
    return times


def pieces(only: list[str]) -> list[Callable[[int], list[Row]]]:
    """All measurements, or those of the models whose name contains one of the words."""

    def wanted(name: str) -> bool:
        return not only or any(word.lower() in name.lower() for word in only)

    found: list[Callable[[int], list[Row]]] = []
    found += [
        piece for name, piece in {ARITHMETIC: arithmetic, SMALL: small}.items() if wanted(name)
    ]
    cases = [case for case in CASES if case.name in OPTIMIZERS and wanted(case.label)]
    found += [partial(steps, case) for case in cases]
    if not found:
        raise SystemExit(f"Nothing is called {only}. Known: {[ARITHMETIC, SMALL, *OPTIMIZERS]}.")
    return found


def main() -> None:
    """Measure, print, and write down."""
    options = arguments(__doc__, rounds=9)
    options.add_argument("--peak", choices=SCALARS, help="(of a fresh process)")
    given = options.parse_args()
    if given.peak:
        print_peak(given.peak)
        return
    rows: list[Row] = []
    for piece in pieces(given.only):
        rows += piece(given.rounds)
        if given.json:
            keep(rows, given.json)
    show(rows, "Protection")


if __name__ == "__main__":
    main()
