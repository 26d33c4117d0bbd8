"""PyTorch's switches: observing works however they stand, and leaves them so, whatever happens."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import deterministic

import retain
from retain.per_sample import switches

STRICT = [(False, False), (True, False), (True, True)]  # deterministic, only a warning


def _all() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "strict": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": deterministic.fill_uninitialized_memory,
        "benchmark": cudnn.benchmark,
        "cudnn deterministic": cudnn.deterministic,
        "tf32": cudnn.allow_tf32,
        "products": torch.get_float32_matmul_precision(),
    }


@pytest.fixture(autouse=True)
def _back() -> Iterator[None]:
    before = _all()
    yield
    torch.use_deterministic_algorithms(before["strict"], warn_only=before["warn only"])
    torch.backends.cudnn.benchmark = before["benchmark"]
    torch.backends.cudnn.allow_tf32 = before["tf32"]
    torch.set_float32_matmul_precision(before["products"])


class Unrepeatable(torch.autograd.Function):
    """Its backward has no deterministic algorithm: PyTorch refuses it where only such may run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous().clone()
        return grad.put_(torch.arange(grad.numel()), grad.flatten().clone())


class Net(nn.Module):
    def __init__(self, *, unrepeatable: bool = False, failing: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.unrepeatable, self.failing = unrepeatable, failing

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        if self.failing and out.requires_grad:
            out.register_hook(_fail)
        return Unrepeatable.apply(out) if self.unrepeatable else out  # type: ignore[no-any-return]


def _fail(grad: Tensor) -> None:
    raise RuntimeError("a hook that fails")


def _truth(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one in x:
        model.zero_grad()
        model(one[None]).square().sum().backward()
        for name, p in model.named_parameters():
            total[name] += p.grad.abs() / len(x)  # type: ignore[union-attr]
    model.zero_grad()
    return total


@pytest.mark.parametrize(("strict", "warn_only"), STRICT)
@pytest.mark.parametrize("benchmark", [False, True])
@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_however_they_stand(strict: bool, warn_only: bool, benchmark: bool, products: str) -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(9, 6)
    expected = _truth(model, x)
    torch.use_deterministic_algorithms(strict, warn_only=warn_only)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(products)
    before = _all()
    observed = retain.MAS(model).observe([x], progress=False).observed
    assert _all() == before
    near = 1e-5 if products == "highest" else 2e-2
    for name, omega in observed.items():
        torch.testing.assert_close(omega, expected[name], rtol=near, atol=near)


@pytest.mark.parametrize(("strict", "warn_only"), STRICT)
def test_after_an_error(strict: bool, warn_only: bool) -> None:
    torch.use_deterministic_algorithms(strict, warn_only=warn_only)
    torch.backends.cudnn.benchmark = True
    before = _all()
    memory = retain.MAS(Net(failing=True))
    with pytest.raises(retain.RetainError, match="a hook that fails"):
        memory.observe([torch.randn(9, 6)], progress=False)
    assert _all() == before


@pytest.mark.parametrize(("strict", "warn_only"), STRICT)
def test_what_has_no_deterministic_algorithm(strict: bool, warn_only: bool) -> None:
    """PyTorch would refuse it: here it is computed, and a warning says so."""
    model, x = Net(unrepeatable=True), torch.randn(9, 6)
    expected = _truth(model, x)
    torch.use_deterministic_algorithms(strict, warn_only=warn_only)
    before = _all()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        observed = retain.MAS(model).observe([x], progress=False).observed
    assert _all() == before
    assert strict == any("deterministic" in str(one.message) for one in told)
    for name, omega in observed.items():
        torch.testing.assert_close(omega, expected[name])


def test_the_self_check_is_deterministic() -> None:
    """Its passes are; the forward is not: that might take other operations than the batch does."""
    seen: dict[str, set[bool]] = {"forward": set(), "backward": set()}

    class Looking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen["forward"].add(torch.are_deterministic_algorithms_enabled())
            out = super().forward(x)
            if out.requires_grad:
                out.register_hook(look)
            return out

    def look(grad: Tensor) -> None:
        if len(grad) <= 3:
            seen["backward"].add(torch.are_deterministic_algorithms_enabled())

    retain.MAS(nn.Sequential(Looking(6, 8), nn.Tanh(), nn.Linear(8, 3))).observe(
        [torch.randn(9, 6)], progress=False
    )
    assert seen == {"forward": {False}, "backward": {True}}


def test_of_several_threads_the_last_one_turns_them_back() -> None:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True)
    before = _all()
    memories = [retain.MAS(Net()) for _ in range(4)]
    found: list[BaseException] = []

    def observe(memory: retain.MAS) -> None:
        try:
            for n in (5, 9, 13):
                memory.observe([torch.randn(n, 6)], progress=False)
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=observe, args=(memory,)) for memory in memories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found
    assert _all() == before


def test_overlapping() -> None:
    """The first one in leaves first."""
    torch.backends.cudnn.benchmark = True
    before = _all()
    one, other = switches.repeatable(), switches.repeatable()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert torch.are_deterministic_algorithms_enabled()
    other.__exit__(None, None, None)
    assert _all() == before


def test_a_switch_that_cannot_be_turned() -> None:
    """Those before it are turned back, and the next one who comes finds them as they were."""
    stand = {"one": 1, "other": 2}
    broken = [True]

    def turn(name: str, to: int) -> None:
        if name == "other" and broken[0]:
            raise RuntimeError("it is stuck")
        stand[name] = to

    def switch(name: str) -> Any:
        return (lambda: stand[name], lambda to: turn(name, to), 0)

    turned = switches._Turned(lambda: [switch("one"), switch("other")])
    with pytest.raises(RuntimeError, match="stuck"), turned():
        pass
    assert stand["one"] == 1
    broken[0] = False
    with turned():
        assert stand == {"one": 0, "other": 0}
    assert stand == {"one": 1, "other": 2}
