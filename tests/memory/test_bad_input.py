"""Bad input: a clear error of retain, and nothing lost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain.errors import InputError, ModelError, NonFiniteError, StateError

X = torch.randn(6, 4)
KINDS = [retain.MAS, retain.LocalMAS, retain.EWC]


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def memory(request):
    """A memory that has seen 6 samples, which no error may lose."""
    memory = request.param(network()).observe(X)
    yield memory
    assert memory.observed.samples == 6
    memory.consolidate()
    assert memory.importance.samples == 6


@pytest.mark.parametrize(
    "data",
    [[], (), iter([]), DataLoader(TensorDataset(X[:0]), batch_size=2), (x for x in ())],
    ids=["list", "tuple", "iterator", "loader", "generator"],
)
def test_no_data(memory, data):
    with pytest.raises(
        InputError, match=r"holds no batch.*generator can be gone through only once"
    ):
        memory.observe(data)


def test_a_generator_that_is_used_up(memory):
    used = (x for x in [X])
    next(used)
    with pytest.raises(InputError, match="holds no batch"):
        memory.observe(used)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "NoneType; expected a DataLoader"),
        (7, "int; expected"),
        ("photos/", "str; expected"),
        (X[:0], r"shape \(0, 4\), without any sample"),
        (torch.tensor(1.0), "without any sample"),
        ({"x": X}, r"put it in a list: \[batch\]"),
        (TensorDataset(X), r"DataLoader\(dataset, batch_size=64\)"),
    ],
    ids=["None", "number", "path", "empty tensor", "scalar", "dict", "dataset"],
)
def test_data_that_cannot_be_gone_through(memory, data, said):
    with pytest.raises(InputError, match=said):
        memory.observe(data)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ("text", "A batch is a str"),
        (None, "A batch is a NoneType"),
        (3, "A batch is a int"),
        ([], "A batch is an empty list"),
        (("text", 1), "begins with a str"),
        ({}, "holds no tensor"),
        ({"x": "text"}, "holds no tensor"),
        (torch.tensor(1.0), "no tensor with a dimension 0"),
        (X[:0], "0 samples"),
    ],
    ids=str,
)
def test_a_batch_of_another_kind(memory, batch, said):
    with pytest.raises(InputError, match=rf"Batch 1 \(the first is 1\): .*{said}"):
        memory.observe([batch])


def test_a_batch_that_the_model_does_not_take(memory):
    with pytest.raises(InputError, match=r"Batch 1 .* failed with \w*Error"):
        memory.observe([torch.ones(2, 9)])


class Answers(nn.Module):
    """Gives whatever a function makes of a linear layer's result."""

    def __init__(self, answer):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.linear(x))


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (lambda out: "yes", InputError, "returns a str without a tensor"),
        (lambda out: None, InputError, "returns a NoneType without a tensor"),
        (lambda out: out.argmax(1), InputError, "torch.int64; expected a floating point tensor"),
        (lambda out: out.detach(), InputError, "does not depend on the protected parameters"),
        (lambda out: out.mean(), InputError, r"shape \(\) for a batch of 6"),
        (lambda out: out.mean(0), InputError, r"shape \(3,\) for a batch of 6"),
        (lambda out: out.T, InputError, r"shape \(3, 6\) for a batch of 6"),
        (lambda out: out * torch.nan, NonFiniteError, r"sample\(s\) \[0, 1"),
        (lambda out: out / 0, NonFiniteError, "NaN or infinity in the model's output"),
    ],
    ids=["str", "None", "whole", "detached", "scalar", "mean", "transposed", "nan", "inf"],
)
@pytest.mark.parametrize("kind", [retain.MAS, retain.EWC])
def test_an_output_that_cannot_be_used(kind, answer, error, said):
    memory = kind(Answers(answer))
    with pytest.raises(error, match=rf"Batch 1 .*{said}"):
        memory.observe([X])
    assert memory.observed.samples == 0


def test_which_batch_is_not_finite():
    memory = retain.MAS(network())
    with pytest.raises(NonFiniteError, match=r"Batch 3 .*sample\(s\) \[1\].* The 4 samples"):
        memory.observe([X[:2], X[2:4], torch.stack([X[0], X[1] * torch.inf])])
    assert memory.observed.samples == 4


@pytest.mark.parametrize("strength", [-1, -1e-9, math.nan, math.inf, -math.inf, "1", None, True])
@pytest.mark.parametrize("kind", [*KINDS, retain.SI])
def test_a_strength_that_is_none(kind, strength):
    with pytest.raises(InputError, match=r"strength=.*expected a finite number of at least 0"):
        kind(network(), strength=strength)
    memory = kind(network(), strength=0)
    with pytest.raises(InputError, match="strength="):
        memory.strength = strength
    assert memory.strength == 0


@pytest.mark.parametrize("kind", [*KINDS, retain.SI])
def test_a_model_that_cannot_be_protected(kind):
    with pytest.raises(InputError, match=r"model is a str; expected a torch\.nn\.Module"):
        kind("resnet18")
    with pytest.raises(ModelError, match=r"No trainable parameter.* 0 parameters"):
        kind(nn.ReLU())
    with pytest.raises(ModelError, match="4 of them frozen"):
        kind(network().requires_grad_(False))
    with pytest.raises(
        InputError, match=r"include= matches no parameter with 'haed'.*The model has 0\.weight"
    ):
        kind(network(), include="haed")
    with pytest.raises(InputError, match=r"dtype=torch\.int8 cannot hold"):
        kind(network(), dtype=torch.int8)


def test_everything_frozen_after_the_memory_was_made():
    model = network()
    memory = retain.MAS(model)
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="No trainable parameter"):
        memory.observe(X)


def test_a_penalty_while_something_was_never_consolidated(memory):
    with pytest.raises(StateError, match=r"6 samples were observed and never consolidated"):
        memory.penalty()


def test_a_penalty_while_something_more_was_never_consolidated():
    memory = retain.MAS(network()).observe(X).consolidate().observe(X[:2])
    with pytest.raises(StateError, match=r"2 samples were observed and never consolidated"):
        memory.penalty()


@pytest.mark.parametrize("kind", [*KINDS, retain.SI])
def test_a_penalty_before_anything_is_zero_with_one_warning(kind, recwarn):
    memory = kind(network())
    for _ in range(3):
        total = memory.penalty()
        assert total == 0
        assert total.shape == ()
        (memory.model(X).sum() + total).backward()
        total.backward()
    (said,) = recwarn
    assert str(said.message).startswith(f"Nothing is protected yet: {kind.__name__} has no")


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_that_leaves_nothing(memory, limit):
    with pytest.raises(InputError, match=f"max_samples={limit}; expected at least 1"):
        memory.observe(X, max_samples=limit)


def test_words_that_are_not_known():
    with pytest.raises(InputError, match=r"score='squared_norm'.*Did you mean 'squared-norm'"):
        retain.MAS(network(), score="squared_norm")
    with pytest.raises(InputError, match=r"fisher='empirica'.*Did you mean 'empirical'"):
        retain.EWC(network(), fisher="empirica")


def test_samples_that_influence_each_other():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            out = self.linear(x)
            return out - out.mean(0)

    memory = retain.MAS(Centred())
    with pytest.raises(ModelError, match=r"Batch 1 "):
        memory.observe(X)
    assert memory.observed.samples == 0
