"""Products and convolutions over shapes, strides and layouts: where is Σₖ|gₖ| dear?

    python benchmarks/shapes.py [--only WORD …] [--rounds N]

Each line is one layer: what its Σₖ|gₖ| takes (`PerSample`, a later batch) as a multiple of a plain
forward and backward of the same layer and batch. Process time on one thread; the ways take turns,
and the median of the rounds' ratios counts. The worst are printed last: they are the figures to
bring down.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from retain.borrowed import borrowed
from retain.per_sample import PerSample
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch

WORST = 5


@dataclass(frozen=True)
class Shape:
    """A layer, and the inputs that it is given in some layout."""

    name: str
    layer: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]


class SequenceFirst(nn.Module):
    """The layer on [t, n, d], as encoders without `batch_first` see it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, d] → [n, t, p]."""
        out: Tensor = self.layer(x.transpose(0, 1)).transpose(0, 1)
        return out


def expanded(n: int, t: int, d: int) -> Tensor:
    """One row for all positions: strides of zero."""
    return torch.randn(n, 1, d).expand(n, t, d)


def products() -> Iterator[Shape]:
    """Linear layers from one row per sample to many, in every layout."""
    for n, t, d, p in (
        (16, 65, 384, 1536),
        (16, 65, 1536, 384),
        (16, 128, 256, 256),
        (128, 64, 96, 64),
    ):
        linear = partial(nn.Linear, d, p)
        layouts: dict[str, Callable[[], Tensor]] = {
            "contiguous": partial(torch.randn, n, t, d),
            "transposed": lambda n=n, t=t, d=d: torch.randn(n, d, t).mT,
            "sliced": lambda n=n, t=t, d=d: torch.randn(n, t, 3 * d)[..., :d],
            "expanded": partial(expanded, n, t, d),
        }
        for layout, inputs in layouts.items():
            yield Shape(f"linear {n}×{t}, {d} → {p}, {layout}", linear, inputs)
        first = partial(lambda make: SequenceFirst(make()), linear)
        yield Shape(f"linear {n}×{t}, {d} → {p}, sequence-first", first, layouts["contiguous"])
    for n, d, p in ((1024, 784, 400), (128, 4096, 1024)):
        yield Shape(f"linear {n}, {d} → {p}", partial(nn.Linear, d, p), partial(torch.randn, n, d))


def convolutions() -> Iterator[Shape]:
    """Convolutions of many and of few pixels, of one and more dimensions, in every layout."""
    flat = {
        "3 → 64, 7², stride 2": ((3, 64, 7, 2, 3), (8, 3, 112, 112)),
        "64 → 64, 3²": ((64, 64, 3, 1, 1), (16, 64, 28, 28)),
        "256 → 256, 3²": ((256, 256, 3, 1, 1), (16, 256, 7, 7)),
        "128 → 256, 1²": ((128, 256, 1), (32, 128, 14, 14)),
        "96 alone, 3²": ((96, 96, 3, 1, 1, 1, 96), (16, 96, 28, 28)),
        "96 alone, 7²": ((96, 96, 7, 1, 3, 1, 96), (16, 96, 28, 28)),
        "64 in 8 groups, 3²": ((64, 64, 3, 1, 1, 1, 8), (16, 64, 28, 28)),
    }
    for name, (given, size) in flat.items():
        layer = partial(nn.Conv2d, *given)
        yield Shape(f"conv2d {name}", layer, partial(torch.randn, *size))
        last = partial(lambda s: torch.randn(s).to(memory_format=torch.channels_last), size)
        yield Shape(f"conv2d {name}, channels last", layer, last)
    for name, one, size in (
        ("conv1d 64 → 128, 5", partial(nn.Conv1d, 64, 128, 5), (32, 64, 200)),
        ("conv1d 1 → 64, 11, stride 4", partial(nn.Conv1d, 1, 64, 11, 4), (16, 1, 4000)),
        ("conv3d 16 → 32, 3³", partial(nn.Conv3d, 16, 32, 3), (4, 16, 8, 16, 16)),
        ("transposed 64 → 32, 4²", partial(nn.ConvTranspose2d, 64, 32, 4, 2), (16, 64, 16, 16)),
    ):  # fmt: skip
        yield Shape(name, one, partial(torch.randn, *size))


def ratio(shape: Shape, rounds: int) -> tuple[float, float]:
    """The median of Ω ÷ plain, and the milliseconds of the plain pass."""
    torch.manual_seed(0)
    model, x = shape.layer(), shape.inputs()
    parameters, batch = dict(model.named_parameters()), Batch.of(x)
    engine = PerSample(model, parameters, SquaredNorm())

    def plain() -> None:
        model(x).square().sum().backward()

    def omega() -> None:
        with borrowed(model):
            engine(batch)

    for _ in range(2):
        plain()
        omega()
    taken = [(seconds(plain), seconds(omega)) for _ in range(rounds)]
    return (
        statistics.median(ours / usual for usual, ours in taken),
        1e3 * statistics.median(usual for usual, _ in taken),
    )


def seconds(run: Callable[[], None]) -> float:
    """Process time of one call."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def main() -> None:
    """Measure every shape, and say which are the worst."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--only", nargs="+", default=[], help="shapes with one of these words")
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for shape in (*products(), *convolutions()):
        if given.only and not any(word in shape.name for word in given.only):
            continue
        found[shape.name], usual = ratio(shape, given.rounds)
        print(f"{found[shape.name]:6.2f} × {usual:8.2f} ms  {shape.name}", flush=True)
    print(f"\nThe worst of {len(found)}:")
    for name in sorted(found, key=found.__getitem__, reverse=True)[:WORST]:
        print(f"{found[name]:6.2f} ×  {name}")


if __name__ == "__main__":
    main()
