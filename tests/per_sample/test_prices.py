"""What is said to be dear is dear when it is warm, too; and what is dear is said, however short."""

from __future__ import annotations

import cProfile
import pstats
import re
import warnings

import pytest
import torch
from torch import Tensor, nn

import retain
from retain.borrowed import borrowed
from retain.per_sample import PerSample, dear, prices
from retain.per_sample.plain import PlainPass
from retain.per_sample.prices import AROUND, KINDS, Price, Prices
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch


def told(model: nn.Module, *inputs: Tensor) -> list[str]:
    """What is said about prices when these are observed."""
    engine = PerSample(model.eval(), dict(model.named_parameters()), SquaredNorm())
    with warnings.catch_warnings(record=True) as caught, borrowed(model):
        warnings.simplefilter("always")
        for x in inputs:
            sums = engine(Batch.of(x))
            assert all(total.isfinite().all() for total in sums.values())
    return [str(w.message) for w in caught if "as long as a plain" in str(w.message)]


class Slow:
    """A batch whose turns, and those of a plain pass, take as long as they are said to."""

    def __init__(self, turns: list[float], plain: list[float]) -> None:
        self.turns, self.plain, self.called = iter(turns), iter(plain), 0
        self.last = (turns[-1], plain[-1])  # what further ones take

    def price(self) -> Price:
        return Price.measured(next(self.turns), lambda: next(self.plain, self.last[1]), self._again)

    def _again(self) -> float:
        self.called += 1
        return next(self.turns, self.last[0])


def test_a_first_turn_is_no_measure() -> None:
    batch = Slow([1.0, 0.02], [0.01])
    assert not batch.price().dear
    assert batch.called == 1


def test_what_takes_long_again_is_dear() -> None:
    price = Slow([1.0, 0.1], [0.01]).price()
    assert price.dear
    assert price.passes == pytest.approx(10)


def test_other_programs_make_nothing_dear() -> None:
    """Most turns take five times as long as the machine would need for them."""
    assert not Slow([0.1, 0.1, 0.1, 0.02], [0.01]).price().dear
    assert Slow([0.1], [0.05, 0.01, 0.05]).price().dear  # nor cheap


def test_long_batches_are_not_timed_again_and_again() -> None:
    once, never = Slow([1.0], [0.1]), Slow([9.0], [0.1])
    assert once.price().dear
    assert never.price().dear
    assert (once.called, never.called) == (1, 0)


def test_what_ends_in_the_last_layers_is_not_cheap_beyond_doubt() -> None:
    """Then a plain backward pass may take no time at all, and a forward is all that is known."""
    assert Price.at_most(0.4, 0.1, 1, whole=False).dear
    assert not Price.at_most(0.4, 0.1, 1, whole=True).dear
    for frozen in (False, True):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        model[0].requires_grad_(not frozen)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        engine = PerSample(model.eval(), trained, SquaredNorm())
        with borrowed(model):
            engine(Batch.of(torch.randn(5, 4)))
        assert engine._dearness._goes_through_all() is not frozen


def test_what_surrounds_a_batch_is_not_dear() -> None:
    assert not Price(seconds=AROUND, plain=AROUND / 100).dear


def test_looking_at_prices_stays_cheap() -> None:
    """Of many kinds of batches the first ones are timed, then a few."""
    told_by, looks = Prices(), 0
    for kind in range(200):
        if told_by.due(kind, 1e-3):
            looks += 1
            told_by.look(1e-3, lambda: 1e-3, lambda: 1e-3, 1)
            told_by._looking += 4e-3  # the time that it would have taken
    assert KINDS <= looks <= KINDS + 5
    assert not told_by.due(0, 1.0)


class Masked(nn.Module):
    """No closed form: distances are asked for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(32, 64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.prototypes)


class Renormalised(nn.Module):
    """Embeddings that a lookup renormalises."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5_000, 64, max_norm=1.0)
        self.out = nn.Linear(64, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.table(tokens).mean(1))


class Sorted(nn.Module):
    """Rows that the data reorder, so that every batch has to be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(12))
        )

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        for layer in self.layers:
            x = layer(x[order])[order.argsort()]
        return x


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        (
            Renormalised,
            lambda: torch.randint(5_000, (64, 16)),
            r"'table.weight'.*writes to 'table.w",
        ),
        (Sorted, lambda: torch.randn(64, 64), "every batch is probed"),
    ],
)
def test_closed_forms_that_are_dear_are_told(model, inputs, reason: str) -> None:
    torch.manual_seed(0)
    x = inputs()
    said = told(model(), x, x.flip(0), x)
    assert len(said) == 1
    assert re.search(reason, said[0], re.S)
    assert "exclude=" in said[0]


def test_short_batches_are_told_as_well() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 64)
    said = told(Masked(), x, x.flip(0))
    assert len(said) == 1
    assert "'prototypes' has no closed form" in said[0]


@pytest.mark.parametrize("samples", [4, 64])
def test_ordinary_models_are_not_dear(samples: int) -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4))
    cnn = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    layer = nn.Sequential(layer, nn.Linear(32, 5))
    assert not told(mlp, torch.randn(samples, 8), torch.randn(samples, 8))
    assert not told(cnn, torch.randn(samples, 3, 12, 12))
    assert not told(layer, torch.randn(samples, 8, 32))


def test_a_backward_for_each_class_is_what_was_asked_for() -> None:
    torch.manual_seed(0)
    memory = retain.EWC(nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 10)), fisher="exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.observe(torch.randn(16, 16), progress=False)


def test_the_work_around_a_batch_is_bounded() -> None:
    """What a small network pays for: calls of Python functions, which no other process slows."""
    layers = (nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    memory, x = retain.MAS(nn.Sequential(*layers).eval()), torch.rand(16, 4)
    for _ in range(2):
        memory.observe(x, progress=False)
    profile, times = cProfile.Profile(), 5
    profile.enable()
    for _ in range(times):
        memory.observe(x, progress=False)
    profile.disable()
    assert pstats.Stats(profile).total_calls < 3700 * times  # type: ignore[attr-defined]


def test_a_long_first_batch_is_judged_by_the_next_of_its_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There code is loaded and ways are tried; and that rows were looked for is no reason."""
    torch.manual_seed(0)
    monkeypatch.setattr(dear, "WARM", 0.0)
    monkeypatch.setattr(Price, "dear", property(lambda price: True))
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(6, 8)
    assert not told(model, x)
    said = told(model, x, x.flip(0), x)
    assert len(said) == 1
    assert "the work around each" in said[0]


def test_what_is_surely_cheap_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []
    monkeypatch.setattr(PlainPass, "seconds", lambda *_: timed.append(1) or 1.0)
    monkeypatch.setattr(prices, "AROUND", 1.0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(6, 8)
    assert not told(model, x, x)
    assert not timed


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="recurrence is not fused here")
def test_the_plain_pass_has_recurrence_fused_and_a_slow_forward_is_no_bound() -> None:
    """The engine takes it step by step; training does not, and its price is what counts."""
    torch.manual_seed(0)
    model, steps = nn.LSTM(4, 4, batch_first=True), []

    def last(result: tuple[Tensor, object]) -> Tensor:
        steps.append("Mkldnn" not in str(result[0].grad_fn.next_functions))
        return result[0][:, -1]

    engine = PerSample(model, dict(model.named_parameters()), SquaredNorm(), output=last)
    batch = Batch.of(torch.randn(5, 6, 4))
    with borrowed(model):
        engine(batch)
        assert steps[0]
        engine._plain.seconds(batch, None)
    assert not steps[-1]
    assert engine._plain.forward_at_least(1.0) == 0.0
    assert PlainPass(engine_of_linear()._forward).forward_at_least(1.0) == 1.0


def engine_of_linear() -> PerSample:
    model = nn.Linear(2, 2)
    return PerSample(model, dict(model.named_parameters()), SquaredNorm())
