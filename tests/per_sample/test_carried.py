"""What lies between a weight and its parameters, without asking it for every sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.borrowed import borrowed
from retain.per_sample import PerSample, carried, devices, pull_back, sums_by_loop
from retain.per_sample.contributions import Factors
from retain.per_sample.scores import SquaredNorm
from retain.per_sample.weighed import Weighed
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor

N, P, Q = 6, 4, 12

# A weight [P, Q] made of parameters a and b, and the shapes of these.
MADE: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "splines": (lambda a, b: (a * b.unsqueeze(-1)).flatten(1), (P, 3, 4), (P, 3)),
    "splines, in the middle": (lambda a, b: (b[:, None] * a).flatten(1), (P, 3, 4), (P, 4)),
    "scaled outputs": (lambda a, b: a * b, (P, Q), (P, 1)),
    "scaled inputs": (lambda a, b: a * b, (P, Q), (Q,)),
    "one scale": (lambda a, b: b * a, (P, Q), ()),
    "outputs in groups": (lambda a, b: (a * b).flatten(0, 1), (2, 2, Q), (2, 1, Q)),
    "groups of both": (lambda a, b: (a * b).reshape(P, Q), (2, 2, 3, 4), (2, 1, 3, 1)),
    "divided": (lambda a, b: a / b.exp(), (P, Q), (P, 1)),
    "shifted": (lambda a, b: a - 0.5 * b, (P, Q), (P, 1)),
    "low rank": (lambda a, b: 2 * (a @ b), (P, 2), (2, Q)),
    "low rank, transposed": (lambda a, b: (b @ a).T, (3, P), (Q, 3)),
    "low rank and scaled": (lambda a, b: (a @ b) * b.sum(0).softmax(0), (P, 2), (2, Q)),
    "low rank, bent": (lambda a, b: torch.tanh(a @ b.exp()), (P, 2), (2, Q)),
    "a square": (lambda a, b: a * a * b, (P, Q), (Q,)),
    "scaled twice": (lambda a, b: (a * b) * b.exp(), (P, Q), (P, 1)),
    "expanded": (lambda a, b: a + b.expand(P, Q), (P, Q), (1, Q)),
    "a table": (lambda a, b: F.layer_norm(a, (5,)) @ b, (P, 5), (5, Q)),
}


class Made(nn.Module):
    def __init__(self, name: str, *, used_twice: bool = False) -> None:
        super().__init__()
        self.make, a, b = MADE[name]
        self.a, self.b = nn.Parameter(torch.randn(a)), nn.Parameter(torch.randn(b))
        self.shift, self.used_twice = nn.Parameter(torch.randn(P)), used_twice

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(self.a, self.b)
        y = torch.tanh(F.linear(x, weight, self.shift))
        y = y + F.linear(x.flip(-1), weight) if self.used_twice else y
        return y.flatten(1) - 0.3


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("positions", [None, 1, 9])
@pytest.mark.parametrize("name", MADE)
def test_is_exact(name: str, positions: int | None, power: int) -> None:
    torch.manual_seed(0)
    model = Made(name, used_twice=positions == 1).double()
    shape = (N, Q) if positions is None else (N, positions, Q)
    routes = _is_exact(model, torch.randn(shape, dtype=torch.float64), power)
    assert not any("pulled back" in way for way in routes.values())


@pytest.mark.parametrize("held", [1, 1 << 20])
@pytest.mark.parametrize("name", ["splines", "groups of both", "low rank and scaled", "a table"])
def test_several_samples_at_a_time(name: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "room", lambda device: held)
    _is_exact(Made(name).double(), torch.randn(N, 3, Q, dtype=torch.float64), 1)


@pytest.mark.parametrize("name", ["low rank, bent", "a table"])
def test_what_would_be_too_large_is_never_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of n times a parameter: each sample is asked instead."""
    monkeypatch.setattr(carried, "HELD", 1)
    monkeypatch.setattr(carried, "BLOCK", 1)
    routes = _is_exact(Made(name).double(), torch.randn(N, 3, Q, dtype=torch.float64), 1)
    assert {routes["a"], routes["b"]} == {"linear, pulled back"}


@pytest.mark.parametrize("name", ["splines", "scaled inputs", "divided", "low rank, transposed"])
def test_products_with_parameters_need_no_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "BLOCK", 1)
    routes = _is_exact(Made(name).double(), torch.randn(N, 3, Q, dtype=torch.float64), 1)
    assert {routes["a"], routes["b"]} == {"linear"}


@pytest.mark.parametrize("held", [1, 1 << 20])
@pytest.mark.parametrize("name", ["low rank, bent", "a table", "low rank and scaled"])
def test_long_gradients_go_one_by_one(
    name: str, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch norm of weights, asked for a batch of gradients, takes far longer than for each."""

    def never(*given: object, **options: object) -> object:
        raise AssertionError("a batched backward")

    monkeypatch.setattr(pull_back, "LONG", 1)
    monkeypatch.setattr(carried, "HELD", held)
    monkeypatch.setattr(carried, "BLOCK", held)
    monkeypatch.setattr(torch.func, "vmap", never)
    _is_exact(Made(name).double(), torch.randn(N, 3, Q, dtype=torch.float64), 1)


def _is_exact(model: nn.Module, x: Tensor, power: int) -> dict[str, str]:
    parameters = dict(model.named_parameters())
    engine = PerSample(model, parameters, SquaredNorm(), power=power)
    batch = Batch.of(x)
    with borrowed(model):
        engine(batch)
        sums = {name: total.clone() for name, total in engine(batch).items()}
        truth = sums_by_loop(
            model, batch, parameters, SquaredNorm(), power=power, output=first_tensor
        )
    for name, total in truth.items():
        torch.testing.assert_close(sums[name], total)
    assert "loop" not in engine.routes.values()
    return engine.routes


def test_weights_and_factors_must_have_the_same_dimensions() -> None:
    factors = Factors(torch.randn(N, 2, 6), torch.randn(N, 2, 4), None)
    assert Weighed.of(factors, torch.randn(3, 2, 4), torch.Size([4])) is not None
    assert Weighed.of(factors, torch.randn(4, 6), torch.Size([6])) is None


def test_what_takes_as_much_as_every_gradient_is_called_pulled_back() -> None:
    """A large weight divided by its norm: its price is looked at, and said."""
    routes = {}
    for size in (8, 300):
        model = nn.utils.parametrizations.spectral_norm(nn.Linear(size, size)).eval()
        engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())
        with borrowed(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine(Batch.of(torch.randn(20, size)))
        routes[size] = engine.routes["parametrizations.weight.original"]
    assert routes == {8: "linear", 300: "linear, pulled back"}
