"""Ω as Avalanche's MAS computes it, beside the mean over samples that the paper defines.

    pip install -e ".[study]" avalanche-lib
    python experiments/libraries.py

A small network that has learned scikit-learn's digits, and Ω of the same 256 of them in batches of
several sizes. Prints the table of docs/libraries.md; takes a few seconds.
"""

from __future__ import annotations

from types import SimpleNamespace

import avalanche
import torch
from avalanche.training.plugins.mas import MASPlugin
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import retain

SAMPLES = 256
BATCHES = (1, 16, 64, 256)


def trained(x: Tensor, y: Tensor) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network of three layers after twenty epochs, and its optimizer."""
    model = nn.Sequential(
        nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _epoch in range(20):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model, optimizer


def of_avalanche(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: TensorDataset, size: int
) -> Tensor:
    """Ω of all parameters, one after another; the plugin asks no more of a strategy than this."""
    strategy = SimpleNamespace(
        model=model,
        optimizer=optimizer,
        device="cpu",
        train_mb_size=size,
        experience=SimpleNamespace(dataset=data),
    )
    found = MASPlugin()._get_importance(strategy)
    return torch.cat([found[name].data.flatten() for name, _ in model.named_parameters()])


def ranks(values: Tensor) -> Tensor:
    """The place of each value in their order."""
    return values.argsort().argsort().double()


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
    model, optimizer = trained(x, y)
    x, y = x[:SAMPLES], y[:SAMPLES]
    ours = retain.MAS(model).observe(x, progress=False).observed
    exact = torch.cat([ours[name].flatten() for name, _ in model.named_parameters()])
    data = TensorDataset(x, y, torch.zeros(len(x), dtype=torch.long))
    print(f"avalanche {avalanche.__version__}, retain {retain.__version__}\n")
    print("| batch | ΣΩ, of the exact one | rank correlation with it |\n|---|---|---|")
    for size in BATCHES:
        theirs = of_avalanche(model, optimizer, data, size)
        order = torch.corrcoef(torch.stack([ranks(exact), ranks(theirs)]))[0, 1]
        print(f"| {size} | {theirs.sum() / exact.sum():.3f} | {order:.3f} |")


if __name__ == "__main__":
    main()
