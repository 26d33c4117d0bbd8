"""What a whole `mas` run costs against a hand-written fine-tuning loop, in CPU time.

    python benchmarks/run.py --data /usr/share/datasets/fashion-mnist

Split Fashion-MNIST, 784-400-400, five tasks of two classes, Adam, batches of 128: the same data,
model, steps and measurements after every task in both. The two take turns; medians are printed.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from retain.experiment import Config, run

TASKS, BATCH = 5, 128


def read(root: Path, name: str, offset: int) -> np.ndarray:
    """The bytes of a gzipped IDX file after its header."""
    return np.frombuffer(gzip.decompress((root / name).read_bytes()), np.uint8, offset=offset)


def split(root: Path, part: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs [n, 784] in [0, 1] and labels [n] of each task."""
    images = read(root, f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
    labels = torch.from_numpy(read(root, f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64))
    inputs = torch.from_numpy(images.copy()).float() / 255
    chosen = [labels // 2 == task for task in range(TASKS)]
    return [(inputs[mask], labels[mask] % 2) for mask in chosen]


def by_hand(root: Path, epochs: int) -> list[float]:
    """Fine-tuning as one would write it down: the final accuracies."""
    torch.manual_seed(0)
    train, test = split(root, "train"), split(root, "t10k")
    backbone = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU())
    heads = nn.ModuleList()
    final: list[float] = []
    for inputs, labels in train:
        heads.append(nn.Linear(400, 2))
        optimizer = torch.optim.Adam([*backbone.parameters(), *heads[-1].parameters()], lr=1e-3)
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
    config = Config(
        tasks=f"fashion-mnist={root}", methods=(method,), epochs=epochs, batch_size=BATCH
    )
    row = run(config, progress=False).runs[0].accuracy[-1]
    return [value for value in row if value is not None]


def main() -> None:
    """Let them take turns, and print the ratio of the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", default="finetune,mas")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    ways = {"by hand": lambda: by_hand(asked.data, asked.epochs)}
    for method in asked.methods.split(","):
        ways[method] = lambda method=method: by_retain(asked.data, asked.epochs, method)
    by_retain(asked.data, 1, "mas")  # imports and first calls
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    accuracy: dict[str, float] = {}
    for _ in range(asked.turns):
        for way, go in ways.items():
            start = time.process_time()
            accuracy[way] = statistics.fmean(go())
            seconds[way].append(time.process_time() - start)
    base = statistics.median(seconds["by hand"])
    print(f"{asked.epochs} epochs, {asked.threads} threads, median CPU seconds of {asked.turns}")
    for way, values in seconds.items():
        median = statistics.median(values)
        print(f"{way:>10}: {median:6.2f} s, {median / base:.2f} ×, accuracy {accuracy[way]:.4f}")


if __name__ == "__main__":
    main()
