"""What blocks of README and the guide take for granted: a small `model`, a `loader`, …"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import retain


def namespace() -> dict[str, Any]:
    """The names that a reader has in a training script of his own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, labels = torch.randn(32, 5), torch.randint(3, (32,))
    new_data = DataLoader(TensorDataset(inputs, labels), batch_size=8)
    return {
        "__name__": "__main__",
        "torch": torch,
        "nn": nn,
        "retain": retain,
        "model": model,
        "other_model": copy.deepcopy(model),
        "base": copy.deepcopy(model),
        "tuned": copy.deepcopy(model),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "criterion": nn.functional.cross_entropy,
        "unlabelled_loader": DataLoader(torch.randn(32, 5), batch_size=8),
        "loader": DataLoader(torch.randn(32, 5), batch_size=8),
        "new_data": new_data,
        "new_inputs": inputs,
        "labels": labels,
        "x": inputs[:8],
        "y": labels[:8],
    }


def further(text: str) -> dict[str, Any]:
    """What takes longer to make, if a text asks for it: a `peft_model`, the `results` of a run."""
    made = {"peft_model": _adapted, "results": _results}
    return {name: make() for name, make in made.items() if f"{name}." in text or f"{name})" in text}


def _adapted() -> nn.Module:
    """The same model with LoRA in it."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(namespace()["model"], LoraConfig(r=2, target_modules=["0", "2"]))


@cache
def _results() -> Any:
    """Of two methods with two seeds."""
    from retain.experiment import Config, run

    return run(Config("digits", epochs=1, batch_size=64, seeds=(0, 1)), progress=False)


def passport_of(model: nn.Module, folder: Path) -> Path:
    """A passport of a small model, in place of one that is shipped for a large one."""
    path = folder / "shipped.safetensors"
    retain.passport(model, torch.randn(32, 5).split(8), progress=False).save(path)
    return path
