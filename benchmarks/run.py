"""What a whole run costs against a hand-written fine-tuning loop, in CPU time of the process.

python benchmarks/run.py --data /usr/share/datasets/fashion-mnist [--only mas] [--json FILE]

Split Fashion-MNIST, 784-400-400 with a head per task, five tasks of two classes, Adam 1e-3 anew in
each, batches of 128. All ways read the same files, take the same number of steps on the same
samples, and measure every task so far on its whole test set after each task. The runner also
measures each task before it is learned, and on the first weights, which forward transfer needs;
and `mas` computes Ω on all training data and protects every step from the second task on.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from records import THREADS, Row, arguments, keep, of_ratios, show
from retain.experiment import Config, run

TASKS, BATCH, RATE = 5, 128, 1e-3
MODEL = "MLP 784-400-400, five tasks of Fashion-MNIST"
BY_HAND = "a hand-written fine-tuning loop, CPU time"
TARGETS = {"mas": 1.2}
FUSED = "the loop by hand, its Adam fused"


def read(root: Path, name: str, offset: int) -> np.ndarray:
    """The bytes of a gzipped IDX file after its header."""
    return np.frombuffer(gzip.decompress((root / name).read_bytes()), np.uint8, offset=offset)


def split(root: Path, part: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs [n, pixels] in [0, 1] and labels [n] of each task."""
    labels = torch.from_numpy(read(root, f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64))
    images = read(root, f"{part}-images-idx3-ubyte.gz", 16).reshape(len(labels), -1)
    inputs = torch.from_numpy(images.copy()).float() / 255
    chosen = [labels // 2 == task for task in range(TASKS)]
    return [(inputs[mask], labels[mask] % 2) for mask in chosen]


def by_hand(root: Path, epochs: int, *, fused: bool = False) -> list[float]:
    """Fine-tuning as one would write it down: the final accuracies."""
    torch.manual_seed(0)
    train, test = split(root, "train"), split(root, "t10k")
    pixels = train[0][0].shape[1]
    backbone = nn.Sequential(nn.Linear(pixels, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU())
    heads = nn.ModuleList()
    final: list[float] = []
    for inputs, labels in train:
        heads.append(nn.Linear(400, 2))
        weights = [*backbone.parameters(), *heads[-1].parameters()]
        optimizer = torch.optim.Adam(weights, lr=RATE, fused=fused or None)
        for _ in range(epochs):
            for indices in torch.randperm(len(labels)).split(BATCH):
                loss = cross_entropy(heads[-1](backbone(inputs[indices])), labels[indices])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            final = [
                (head(backbone(x)).argmax(1) == y).float().mean().item()
                for head, (x, y) in zip(heads, test)
            ]
    return final


def by_retain(root: Path, epochs: int, method: str) -> list[float]:
    """The final accuracies of a whole run."""
    tasks = f"fashion-mnist={root}"
    config = Config(tasks, methods=(method,), epochs=epochs, batch_size=BATCH, lr=RATE)
    (record,) = run(config, progress=False).runs
    if record.error:
        raise SystemExit(record.error)
    return [value for value in record.accuracy[-1] if value is not None]


def ways(root: Path, epochs: int, only: list[str]) -> dict[str, Callable[[], list[float]]]:
    """The loop by hand, and what is compared with it."""
    compared: dict[str, Callable[[], list[float]]] = {
        "mas": lambda: by_retain(root, epochs, "mas"),
        "finetune": lambda: by_retain(root, epochs, "finetune"),
        FUSED: lambda: by_hand(root, epochs, fused=True),
    }
    chosen = {n: w for n, w in compared.items() if not only or any(o in n for o in only)}
    if not chosen:
        raise SystemExit(f"Nothing is called {only}. Known: {list(compared)}.")
    return {BY_HAND: lambda: by_hand(root, epochs), **chosen}


def measured(asked: argparse.Namespace) -> list[Row]:
    """A row for each way: its CPU time over that of the loop by hand, round by round."""
    competing = ways(asked.data, asked.epochs, asked.only)
    seconds: dict[str, list[float]] = {way: [] for way in competing}
    accuracy: dict[str, float] = {}
    by_retain(asked.data, 1, "mas")  # imports and first calls
    by_hand(asked.data, 1)
    for _ in range(asked.rounds):
        for way, go in competing.items():
            start = time.process_time()
            final = go()
            seconds[way].append(time.process_time() - start)
            accuracy[way] = statistics.fmean(final)
    for way, found in accuracy.items():
        print(f"{way}: {statistics.median(seconds[way]):.2f} s, final accuracy {found:.4f}")
    base = seconds.pop(BY_HAND)
    return [
        of_ratios(
            *(MODEL, way if way == FUSED else f"a whole {way} run", BY_HAND),
            [ours / theirs for ours, theirs in zip(own, base)],
            base=1e3 * statistics.median(base),
            target=TARGETS.get(way),
        )
        for way, own in seconds.items()
    ]


def main() -> None:
    """Measure, print, and write down."""
    options = arguments(__doc__, rounds=7)
    options.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    options.add_argument("--epochs", type=int, default=4)
    asked = options.parse_args()
    torch.set_num_threads(THREADS)
    rows = measured(asked)
    show(rows, "A whole run")
    if asked.json:
        keep(rows, asked.json)


if __name__ == "__main__":
    main()
