"""A protected step asks an accelerator for no number: it could not be captured in a CUDA graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import retain
from retain.memory import attachment, guard, step_size
from retain.penalty import hold, many, parts

# What the host waits for: a number, a comparison's answer, how many there are, a copy to itself.
WAITING = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("_unique2", "unique_dim", "allclose"),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "one by one": lambda p: torch.optim.AdamW(p, 1e-3, foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
}


class Waits(TorchDispatchMode):
    """Counts what would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors count as if they were on an accelerator."""
    for module in (hold, parts, many, attachment, guard, step_size):
        monkeypatch.setattr(module, "is_accelerated", lambda tensor: True)


def _steps(optimizer: torch.optim.Optimizer, model: nn.Module, x: torch.Tensor) -> Counter[str]:
    """What the third step waits for: what is met for the first time may be looked at."""
    for _ in range(2):
        _backward(model, x)
        optimizer.step()
    _backward(model, x)
    with Waits() as waits:
        optimizer.step()
    return waits.counts


def _backward(model: nn.Module, x: torch.Tensor) -> None:
    for p in model.parameters():
        p.grad = None
    model(x).square().mean().backward()


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_protected_step_waits_for_no_more_than_a_plain_one(
    name: str, form: Any, kept: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(9, 6)
    plain = _steps(OPTIMIZERS[name](model.parameters()), model, x)
    memory = retain.MAS(model, dtype=kept)
    memory.observe([x], progress=False).consolidate()
    optimizer = OPTIMIZERS[name](model.parameters())
    with memory.attach(optimizer, form=form):
        before = model[0].weight.detach().clone()
        assert _steps(optimizer, model, x) == plain
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("layers", [2, 40])
def test_the_first_step_looks_at_all_parameters_at_once(layers: int) -> None:
    """Whether the penalty is too strong for SGD's steps takes one number of each parameter."""
    model, x = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))), torch.randn(9, 4)
    memory = retain.MAS(model)
    memory.observe(x, progress=False).consolidate()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    memory.attach(optimizer, form="gradient")
    _backward(model, x)
    with Waits() as waits:
        optimizer.step()
    assert not waits.counts


def test_nor_does_the_penalty_in_the_loss() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(9, 6)
    memory = retain.MAS(model).observe([x], progress=False).consolidate()
    memory.penalty().backward()
    with Waits() as waits:
        (model(x).square().mean() + memory.penalty()).backward()
    assert not waits.counts
