"""Samples that influence each other, random outputs, NaN: refused, and the module is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retain.borrowed import borrowed
from retain.errors import InputError, ModelError, NonFiniteError
from retain.per_sample import PerSample
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch


class Apply(nn.Module):
    """A function as a module without parameters."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


class AlwaysTraining(nn.Module):
    """Holds a module that it keeps in train mode, as some fine-tuning code does by mistake."""

    def __init__(self, kept: nn.Module) -> None:
        super().__init__()
        self.kept = kept

    def train(self, mode: bool = True) -> AlwaysTraining:
        super().train(mode)
        self.kept.train(True)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.kept(x)


class Counting(nn.Module):
    """Its output depends on how often it was called."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Queue(nn.Module):
    """Its output depends on the batch before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("past", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.past = 0.9 * self.past + 0.1 * x.detach().mean(0)
        return x - self.past


def _around(middle: nn.Module) -> nn.Module:
    """A model [n, 6] → [n, 3] with `middle`, on [n, 8], under the name body.middle."""
    body = nn.Sequential()
    body.add_module("first", nn.Linear(6, 8))
    body.add_module("middle", middle)
    body.add_module("act", nn.Tanh())
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", nn.Linear(8, 3))
    return model.double()


def _partners(x: Tensor) -> Tensor:
    """Samples come in pairs, one after the other; a batch of an odd number is an error."""
    return x.view(-1, 2, x.shape[1]).flip(1).reshape(x.shape)


INTERACTING = {
    "batch norm kept in train mode": AlwaysTraining(nn.BatchNorm1d(8)),
    "batch norm without running statistics": nn.BatchNorm1d(8, track_running_stats=False),
    "mean over the batch": Apply(lambda x: x - x.mean(0)),
    "a little of the mean over the batch": Apply(lambda x: x + 1e-3 * x.mean(0)),
    "standard deviation over the batch": Apply(lambda x: x / (1e-3 + x.std(0, correction=0))),
    "softmax over the batch": Apply(lambda x: x.softmax(0)),
    "unit length over the batch": Apply(lambda x: F.normalize(x, dim=0)),
    "running sum over the batch": Apply(lambda x: x.cumsum(0)),
    "largest of the batch": Apply(lambda x: x / x.abs().max()),
    "samples shifted by one": Apply(lambda x: x.roll(1, 0)),
    "samples in reverse": Apply(lambda x: x.flip(0)),
    "similarities within the batch": Apply(lambda x: (x @ x.t()).softmax(1) @ x),
    "pairs within the batch": Apply(lambda x: x + _partners(x)),
    "attention over the batch": nn.TransformerEncoderLayer(8, 2, 8),
    "recurrence over the batch": Apply(lambda x: x + F.pad(x, (0, 0, 1, 0))[:-1].tanh()),
}
RANDOM = {
    "dropout kept in train mode": AlwaysTraining(nn.Dropout(0.3)),
    "functional dropout": Apply(lambda x: F.dropout(x, 0.3, training=True)),
    "noise": Apply(lambda x: x + 0.1 * torch.randn_like(x)),
    "random masks": Apply(lambda x: x * (torch.rand_like(x) > 0.5)),
    "a counter": Counting(),
    "a memory of earlier batches": Queue(),
}


def _engine(model: nn.Module, **how: Any) -> PerSample:
    return PerSample(model, dict(model.named_parameters()), SquaredNorm(), **how)


def _observe(model: nn.Module, *batches: Tensor) -> None:
    engine = _engine(model)
    with borrowed(model):
        for x in batches:
            engine(Batch.of(x))


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("kind", INTERACTING)
def test_interacting_samples_are_refused(kind: str, n: int) -> None:
    model = _around(INTERACTING[kind])
    if kind == "pairs within the batch":
        n += n % 2
    with pytest.raises(ModelError, match=r"body\.middle"):
        _observe(model, torch.randn(n, 6, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["mean over the batch", "attention over the batch"])
def test_interaction_is_found_after_a_first_batch_of_one_sample(kind: str) -> None:
    model = _around(INTERACTING[kind])
    x = torch.randn(5, 6, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"body\.middle"):
        _observe(model, x[:1], x)


@pytest.mark.parametrize("kind", RANDOM)
def test_outputs_that_change_from_call_to_call_are_refused(kind: str) -> None:
    model = _around(RANDOM[kind])
    with pytest.raises(ModelError, match=r"body\.middle"):
        _observe(model, torch.randn(4, 6, dtype=torch.float64))


@pytest.mark.parametrize("side", [1, 5])
def test_batch_norm_of_images_kept_in_train_mode_is_refused(side: int) -> None:
    """On one pixel a single sample cannot even be computed; on more it gives another output."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), AlwaysTraining(nn.BatchNorm2d(4)), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * side * side, 2),
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"\b1\.kept|'1'"):
        _observe(model, torch.randn(6, 3, side, side))


def test_interaction_in_float32_is_refused() -> None:
    model = _around(INTERACTING["mean over the batch"]).float()
    with pytest.raises(ModelError, match=r"body\.middle"):
        _observe(model, torch.randn(4, 6))


def test_interaction_outside_of_any_submodule_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.second(h - h.mean(0))

    with pytest.raises(ModelError, match=r"second|Net"):
        _observe(Net(), torch.randn(4, 6))


def test_the_refused_model_is_given_back_as_it_was() -> None:
    norm = nn.BatchNorm1d(8)
    model = _around(AlwaysTraining(norm)).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with pytest.raises(ModelError):
        _observe(model, torch.randn(4, 6, dtype=torch.float64))
    assert modes == [module.training for module in model.modules()]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in model.parameters())


def test_sensible_models_are_not_refused() -> None:
    """Dropout and batch-norm in their places are no interaction."""
    middle = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))
    _observe(_around(middle), torch.randn(4, 6, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(bad: float) -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    x[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"sample.*2"):
        _observe(nn.Linear(6, 3).double(), x)


def test_gradients_that_are_not_finite_never_look_finite() -> None:
    """√|z| at z = 0: a finite output, an infinite gradient."""
    model = nn.Sequential(nn.Linear(4, 5, bias=False), Apply(lambda z: z.abs().sqrt() + 1))
    x = torch.randn(3, 4)
    x[1] = 0
    engine = _engine(model)
    try:
        with borrowed(model):
            finite = torch.isfinite(engine(Batch.of(x))["0.weight"]).all()
    except NonFiniteError:
        finite = torch.tensor(False)
    assert not finite


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x.argmax(1), lambda x: x.detach(), lambda x: x.sum(0), lambda x: x.sum()],
    ids=["integers", "detached", "summed over the batch", "one number"],
)
def test_outputs_that_cannot_be_differentiated_per_sample_are_refused(wrong: Any) -> None:
    model = _around(nn.Identity())
    engine = _engine(model, output=wrong)
    with borrowed(model), pytest.raises(InputError):
        engine(Batch.of(torch.randn(4, 6, dtype=torch.float64)))


@pytest.mark.parametrize("make", ["exported", "traced"])
def test_what_was_made_for_batches_of_one_size_is_refused_with_the_way_out(make: str) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).view(12, 6)

    x = torch.randn(12, 5)
    if make == "exported":
        model: nn.Module = torch.export.export(nn.Sequential(nn.Linear(5, 6)), (x,)).module()
    else:
        model = torch.jit.trace(Fixed(), x)
    with (
        pytest.raises(ModelError, match=r"fails with \d of the 12.*12 alone.*dynamic_shapes"),
        borrowed(model),
    ):
        PerSample(model, dict(model.named_parameters()), SquaredNorm())(Batch.of(x))


class PathDropped(nn.Module):
    """Now and then, nothing comes out, though it is evaluated."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.each, self.path = each, nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(len(x), 1) < 0.9 if self.each else torch.rand(()) < 0.9
        return self.path(x) * kept


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("each", [True, False])
def test_chance_that_decides_rarely_is_found(each: bool, size: int) -> None:
    refused = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 5), PathDropped(each))
        engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())
        try:
            with borrowed(model):
                for x in torch.randn(16, 5).split(size):
                    engine(Batch.of(x))
        except ModelError as error:
            refused.append("Module '1' (PathDropped) gives another output" in str(error))
    assert all(refused)
    assert len(refused) >= 4


class Remembers(nn.Module):
    """Adds what it saw in the call before, wherever that is kept."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.net, self.where = nn.Linear(5, 3), where
        self.kept: Any = {"attribute": None, "list": [None], "object": type("Kept", (), {})()}[
            where
        ]
        if where == "object":
            self.kept.value = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        before = {"attribute": lambda: self.kept, "list": lambda: self.kept[0]}
        last = before[self.where]() if self.where in before else self.kept.value
        if self.where == "attribute":
            self.kept = h.detach().mean()
        elif self.where == "list":
            self.kept[0] = h.detach().mean()
        else:
            self.kept.value = h.detach().mean()
        return h if last is None else h + last


@pytest.mark.parametrize("where", ["attribute", "list", "object"])
@pytest.mark.parametrize("size", [1, 4])
def test_state_is_found_and_given_back(where: str, size: int) -> None:
    """Also where the same sample again gives the same."""
    model = Remembers(where)
    engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())

    def go() -> None:
        with borrowed(model):
            for x in torch.randn(8, 5).split(size):
                engine(Batch.of(x))

    with pytest.raises(ModelError, match="keeps state from one call to the next"):
        go()
    kept = model.kept if where == "attribute" else model.kept[0] if where == "list" else None
    assert (model.kept.value if where == "object" else kept) is None


class Draws(nn.Module):
    """Random numbers from a generator of its own; and some that do not matter."""

    def __init__(self, matters: bool) -> None:
        super().__init__()
        self.net, self.matters = nn.Linear(5, 3), matters
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.rand(len(x), 3, generator=self.generator)
        torch.rand(2)
        return self.net(x) + drawn * self.matters


def test_generators_are_given_back() -> None:
    for matters in (False, True):
        model = Draws(matters)
        before = model.generator.get_state()
        engine = PerSample(model, dict(model.named_parameters()), SquaredNorm())
        try:
            with borrowed(model):
                engine(Batch.of(torch.randn(6, 5)))
            assert not matters
        except ModelError:
            assert matters
        assert model.generator.get_state().equal(before)
