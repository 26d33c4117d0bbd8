"""What storing Ω and θ* in fewer bits costs in accuracy: MAS on split Fashion-MNIST, three seeds.

    python experiments/storage.py --data /usr/share/datasets/fashion-mnist

Five tasks of two classes with a head each, 784-400-400, Adam 0.001, four epochs, batches of 128.
Prints a table of final average accuracy and forgetting, mean ± standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import retain
from retain.tasks import Task, load_tasks

TYPES = (None, torch.bfloat16, torch.float16, torch.float8_e5m2)
WAYS = (("gradient", 1.0), ("adaptive", 1.0), ("adaptive", 1000.0))
SEEDS, EPOCHS, BATCH = (0, 1, 2), 4, 128


class Network(nn.Module):
    """A backbone with a head for each task, of which one is in use."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(400, 2) for _ in range(tasks))
        self.task = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the task in use, [n, 2]."""
        return self.heads[self.task](self.backbone(x.flatten(1)))


@torch.no_grad()
def accuracy(network: Network, tasks: tuple[Task, ...]) -> list[float]:
    """Percent right on the test split of each task."""
    found = []
    for network.task, task in enumerate(tasks):
        hits = [network(x).argmax(1) == y for x, y, _ in task.test.batches(1000)]
        found.append(100 * torch.cat(hits).float().mean().item())
    return found


def one(
    tasks: tuple[Task, ...], seed: int, form: str, strength: float, dtype: torch.dtype | None
) -> tuple[float, float]:
    """Final average accuracy and forgetting."""
    torch.manual_seed(seed)
    network, order = Network(len(tasks)), torch.Generator().manual_seed(seed)
    memory = retain.MAS(network, include="backbone", strength=strength, dtype=dtype)
    learned = []
    for number, task in enumerate(tasks):
        network.task = number
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        handle = memory.attach(optimizer, form=form) if number else None
        for _ in range(EPOCHS):
            for x, y, _ in task.train.batches(BATCH, shuffle=order):
                optimizer.zero_grad()
                cross_entropy(network(x), y).backward()
                optimizer.step()
        if handle is not None:
            handle.remove()
        memory.observe(task.train.batches(256), progress=False).consolidate()
        final = accuracy(network, tasks)
        learned.append(final[number])
    forgotten = [before - after for before, after in zip(learned[:-1], final)]
    return fmean(final), fmean(forgotten)


def main() -> None:
    """Run them all, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    asked = parser.parse_args()
    tasks = load_tasks(f"fashion-mnist={asked.data}").tasks
    print("| form, λ | Ω and θ\\* | accuracy, % | forgetting, points |\n|---|---|---|---|")
    for form, strength in WAYS:
        for dtype in TYPES:
            try:
                runs = [one(tasks, seed, form, strength, dtype) for seed in SEEDS]
            except retain.RetainError as error:
                print(f"| {form}, {strength:g} | {dtype} | {type(error).__name__} | |", flush=True)
                continue
            cells = [f"{fmean(v):.2f} ± {stdev(v):.2f}" for v in zip(*runs)]
            name = str(dtype or torch.float32).removeprefix("torch.")
            print(f"| {form}, {strength:g} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
