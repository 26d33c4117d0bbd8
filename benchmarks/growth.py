"""How cost grows: with samples, parameters, sequence length, tasks, and classes.

    python benchmarks/growth.py [--only length tasks …] [--json FILE] [--pictures FOLDER]

A point is the median over rounds in which the ways take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

import retain
from cases import GPT2, Case, images, tokens, torchvision, transformers, vectors
from importance import memory
from measure import Run, interleaved
from penalty import consolidated
from records import PLAIN, Row, arguments, keep, quartiles, read, show
from ways import OWN

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # told apart whatever one's eyes
ALEXNET = Case("AlexNet", 32, torchvision("alexnet"), images(224), 1.0)


@dataclass(frozen=True)
class Curve:
    """What grows.

    Attributes:
        name: how it is asked for.
        title: what is shown, and of which model.
        axis: what the points differ in.
        points: rounds → the points, measured.
        unit: of what is measured.
    """

    name: str
    title: str
    axis: str
    points: Callable[[int], Iterator[Row]]
    unit: str = "ms"


def turns(curve: str, at: float, ways: dict[str, Run], rounds: int) -> Iterator[Row]:
    """The milliseconds of the ways that take turns at one point."""
    times = interleaved(ways, rounds=rounds)
    if times.failed:
        raise SystemExit(f"{curve}: {times.failed}")
    for work, seconds in times.seconds.items():
        low, middle, high = (1e3 * value for value in quartiles(seconds))
        yield Row(curve, work, "", middle, "ms", low=low, high=high, rounds=rounds, at=at)


def two_ways(case: Case) -> dict[str, Run]:
    """The plain pass and ours, for one case."""
    model, raw = case.make()
    return {PLAIN: OWN["plain"](model, raw), "Ω": OWN["Ω"](model, raw)}


def by_samples(rounds: int) -> Iterator[Row]:
    """ResNet-18 on images of 112²."""
    for size in (4, 8, 16, 32, 64):
        case = Case("", size, torchvision("resnet18"), images(112), 1.0)
        yield from turns("samples", size, two_ways(case), rounds)


def memory_by_samples(rounds: int) -> Iterator[Row]:
    """How much more memory an Ω pass holds than a plain pass: fresh processes, no turns."""
    for size in (16, 32, 64):
        (row,) = memory(replace(ALEXNET, samples=size), repeats=min(rounds, 2))
        yield replace(row, model="memory", work=f"Ω beyond a {PLAIN}", target=None, at=size)


def perceptron(width: int, classes: int = 10) -> nn.Module:
    """784-width-width-classes."""
    return nn.Sequential(
        *(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, classes),
    )


def by_parameters(rounds: int) -> Iterator[Row]:
    """Perceptrons of growing width."""
    for width in (250, 500, 1000, 2000, 4000):
        case = Case("", 256, lambda width=width: perceptron(width), vectors(784), 1.0)
        parameters = sum(p.numel() for p in case.build().parameters())
        yield from turns("parameters", parameters / 1e6, two_ways(case), rounds)


def by_length(rounds: int) -> Iterator[Row]:
    """A GPT-2 of 6 × 384 with a small vocabulary, so that attention is not hidden behind it."""
    for length in (32, 64, 128, 256, 512):
        config = GPT2 | {"n_positions": length, "vocab_size": 1000}
        model = transformers("GPT2LMHeadModel", **config)
        case = Case("", 4, model, tokens(length, 1000), 1.0)
        yield from turns("length", length, two_ways(case), rounds)


def by_tasks(rounds: int) -> Iterator[Row]:
    """Protection after more and more tasks: MAS keeps one Ω, EWC one per task unless online."""
    for count in range(1, 11):
        ways = {}
        for name, kind in (("MAS", retain.MAS), ("EWC, a term per task", retain.EWC)):
            model = perceptron(1500)
            protect = consolidated(kind(model, strength=1e-3), model, count)
            optimizer = SGD(model.parameters(), lr=1e-6)
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            handle = protect.attach(optimizer)
            ways[f"{name}: a step"] = keeping(optimizer.step, handle)
        yield from turns("tasks", count, ways, rounds)


def keeping(run: Run, handle: object) -> Run:
    """The function, which keeps something else alive as well."""
    return lambda: (run(), handle)


def by_classes(rounds: int) -> Iterator[Row]:
    """The exact Fisher wants a backward pass for each class, the sampled one a single pass."""
    torch.manual_seed(0)
    inputs = torch.rand(64, 784)
    for classes in (2, 5, 10, 20, 50, 100):
        ways = {f"Fisher, {way}": fisher(way, classes, inputs) for way in FISHERS}
        yield from turns("classes", classes, ways, rounds)


FISHERS = ("exact", "sampled")


def fisher(way: Any, classes: int, inputs: torch.Tensor) -> Run:
    """One way to the Fisher, from the second batch on."""
    memory = retain.EWC(perceptron(400, classes).eval(), fisher=way)
    return lambda: memory.observe([inputs], progress=False)


CURVES = [
    Curve("samples", "Samples: ResNet-18, 112²", "samples in a batch", by_samples),
    Curve(
        *("memory", "Memory: AlexNet, 224²", "samples in a batch", memory_by_samples),
        unit="× P more than a plain pass",
    ),
    Curve(
        *("parameters", "Parameters: 784-width-width-10, n = 256", "million parameters"),
        by_parameters,
    ),
    Curve("length", "Sequence length: GPT-2 6×384, n = 4", "tokens in a sequence", by_length),
    Curve("tasks", "Tasks: 784-1500-1500-10, one step", "tasks consolidated", by_tasks),
    Curve("classes", "Classes: 784-400-400-classes, n = 64", "classes", by_classes),
]


def draw(curve: Curve, rows: Sequence[Row], file: Path) -> None:
    """The curve as a picture: from zero, linear, so that straight lines look straight."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "retain", "font.size": 9, "svg.fonttype": "path"})
    figure, axes = plt.subplots(figsize=(4.4, 2.9), layout="constrained")
    for index, work in enumerate(dict.fromkeys(row.work for row in rows)):
        points = sorted((row.at or 0.0, row) for row in rows if row.work == work)
        x, y = [at for at, _ in points], [row.measured or 0.0 for _, row in points]
        style = {"color": OKABE_ITO[index], "marker": "os^D"[index], "markersize": 4}
        axes.plot(x, y, label=work, linewidth=1.6, **style)
        if all(row.low is not None for _, row in points):
            low, high = [row.low for _, row in points], [row.high for _, row in points]
            axes.fill_between(x, low, high, color=OKABE_ITO[index], alpha=0.2, linewidth=0)
    axes.set(xlabel=curve.axis, ylabel=curve.unit, title=curve.title)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, facecolor="white", transparent=False, metadata={"Date": None})
    plt.close(figure)


def pictures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """One picture for each curve that has points."""
    drawn = []
    for curve in CURVES:
        points = [row for row in rows if row.model == curve.name]
        if points:
            drawn.append(folder / f"growth-{curve.name}.svg")
            draw(curve, points, drawn[-1])
    return drawn


def main() -> None:
    """Measure, print, write down, and draw."""
    options: argparse.ArgumentParser = arguments(__doc__, rounds=5)
    options.add_argument("--pictures", type=Path, help="draw into this folder")
    given = options.parse_args()
    curves = [c for c in CURVES if not given.only or any(word in c.name for word in given.only)]
    if not curves:
        raise SystemExit(f"Nothing is called {given.only}. Known: {[c.name for c in CURVES]}.")
    rows: list[Row] = []
    for curve in curves:
        rows += curve.points(given.rounds)
        if given.json:
            keep(rows, given.json)
    show([replace(row, model=f"{row.model}, {row.at:g}") for row in rows], "How cost grows")
    if given.pictures:
        pictures(read(given.json)[1] if given.json else rows, given.pictures)


if __name__ == "__main__":
    main()
