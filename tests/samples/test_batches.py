"""What a batch may be, how a model is called with it, and how samples are cut out of it."""

from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import retain
from retain.errors import InputError
from retain.samples.batches import Batch, tensors_in

X, Y = torch.randn(4, 3), torch.arange(4)
Pair = namedtuple("Pair", ["inputs", "targets"])


class Echo(nn.Module):
    """Returns how it was called."""

    def forward(self, *args, **kwargs):
        return args, kwargs


@pytest.mark.parametrize(
    ("raw", "args", "kwargs", "labels"),
    [
        (X, (X,), {}, None),
        ((X,), (X,), {}, None),
        ((X, Y), (X,), {}, Y),
        ([X, Y], (X,), {}, Y),
        (Pair(X, Y), (X,), {}, Y),
        ((X, "name", Y), (X,), {}, Y),
        ((X, ["a", "b"]), (X,), {}, None),
        (((X, X + 1), Y), (X, X + 1), {}, Y),
        ([[X, 2, X + 1], Y], (X, 2, X + 1), {}, Y),
        ({"x": X, "mask": X > 0}, (), {"x": X, "mask": X > 0}, None),
        ({"x": X, "labels": Y}, (), {"x": X}, Y),
        ({"label": Y, "x": X, "flag": True}, (), {"x": X, "flag": True}, Y),
        (({"x": X}, Y), (), {"x": X}, Y),
        (({"x": X, "label_ids": Y + 1}, Y), (), {"x": X}, Y),
        (OrderedDict(x=X), (), {"x": X}, None),
        (UserDict(x=X, labels=Y), (), {"x": X}, Y),
        ({"x": {"left": X, "right": [X]}}, (), {"x": {"left": X, "right": [X]}}, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_accepted(raw, args, kwargs, labels):
    batch = Batch.of(raw)
    assert batch.samples == 4
    called_args, called_kwargs = batch.call(Echo())
    torch.testing.assert_close(called_args, args)
    torch.testing.assert_close(called_kwargs, kwargs)
    assert (batch.labels is None) == (labels is None)
    if labels is not None:
        assert torch.equal(batch.labels, labels)


def test_of_a_tokenizer():
    encoding = pytest.importorskip("transformers").BatchEncoding(
        {"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 5)}
    )
    batch = Batch.of(encoding)
    assert batch.samples == 2
    assert batch.kwargs.keys() == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("text", "a str; expected a tensor, a tuple or list"),
        (None, "a NoneType; expected"),
        (7, "a int; expected"),
        ((), "an empty tuple"),
        ([], "an empty list"),
        ([1, 2, 3], "a list that begins with a int"),
        (("text", Y), "a tuple that begins with a str"),
        ([["a"], Y], "a list that begins with a list"),
        ({}, "no tensor with a dimension 0"),
        ({"x": "text"}, "no tensor with a dimension 0"),
        ({"labels": Y}, "no tensor with a dimension 0"),
        (torch.tensor(3.0), "no tensor with a dimension 0"),
        (torch.zeros(0, 3), "0 samples"),
        (pack_sequence([X, X[:2]]), "a PackedSequence.*pad_packed_sequence"),
        (iter([X]), "a list_iterator; expected"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused(raw, message):
    with pytest.raises(InputError, match=f"(?s)^A batch .*{message}"):
        Batch.of(raw)


def test_batch_dimension():
    batch = Batch.of((torch.randn(7, 4, 3), Y), batch_dim=1)
    assert batch.samples == 4
    part = batch.take(1, 3)
    assert part.args[0].shape == (7, 2, 3)
    assert part.labels.tolist() == [1, 2]
    with pytest.raises(InputError, match="no tensor with a dimension 1"):
        Batch.of(torch.randn(4), batch_dim=1)


def test_take_cuts_what_counts_samples_and_nothing_else():
    table = torch.randn(5, 3)
    given = {"x": X, "pair": (X, table), "table": table, "scale": torch.tensor(2.0), "n": 4}
    part = Batch.of((given, Y)).take(2, 9)
    assert part.samples == 2
    assert torch.equal(part.kwargs["x"], X[2:])
    assert torch.equal(part.kwargs["pair"][0], X[2:])
    assert part.kwargs["pair"][1] is part.kwargs["table"] is table
    assert part.kwargs["scale"] == 2
    assert part.kwargs["n"] == 4
    assert part.labels.tolist() == [2, 3]


def test_take_keeps_the_kinds_of_containers():
    part = Batch.of([[Pair(X, X), [X], X], Y]).take(0, 1)
    pair, inside, _ = part.args
    assert isinstance(pair, Pair)
    assert isinstance(inside, list)
    assert pair.inputs.shape == (1, 3)


def test_parts_make_up_the_whole():
    batch = Batch.of((X, Y))
    parts = [batch.take(k, k + 1) for k in range(4)]
    assert torch.equal(torch.cat([part.args[0] for part in parts]), X)
    assert torch.equal(torch.cat([part.labels for part in parts]), Y)
    assert batch.args[0] is X


def test_labels_of_another_length_are_left_alone():
    targets = torch.arange(9)
    assert Batch.of((X, targets)).take(0, 1).labels is targets


def test_to_a_device():
    there = Batch.of(({"x": X, "deep": [X]}, Y)).to(torch.device("meta"))
    assert {t.device.type for t in (there.labels, *tensors_in(there.kwargs))} == {"meta"}
    assert there.samples == 4


def test_inference_tensors_become_ordinary():
    with torch.inference_mode():
        raw = torch.randn(4, 3)
    batch = Batch.of(raw).to(raw.device)
    assert not batch.args[0].is_inference()
    assert torch.equal(batch.args[0], raw)


def test_of_a_call_keeps_every_argument():
    batch = Batch.of_call((X,), {"labels": Y, "cache": None})
    assert batch.samples == 4
    assert batch.kwargs.keys() == {"labels", "cache"}
    with pytest.raises(InputError, match="no tensor"):
        Batch.of_call((3,), {})


def test_tensors_in_their_order():
    a, b, c = torch.zeros(3, 1).unbind()
    assert [id(t) for t in tensors_in({"x": (a, [b]), "y": "text", "z": c})] == [
        *map(id, (a, b, c))
    ]


def test_what_is_cut_lies_in_memory_as_the_whole_did():
    """Of a sequence-first batch as well: models ask for a view of their input."""

    class Flattens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x.view(-1, 3)).view(*x.shape[:2], 2).sum(0)

    torch.manual_seed(0)
    model, x = Flattens(), torch.randn(5, 4, 3)
    assert Batch.of(x, batch_dim=1).take(1, 3).args[0].is_contiguous()
    found = retain.MAS(model, batch_dim=1).observe([x], progress=False).observed
    each = [torch.autograd.grad(model(x[:, [k]]).square().sum(), model.layer.weight)[0].abs()
            for k in range(4)]  # fmt: skip
    torch.testing.assert_close(found["layer.weight"], sum(each) / 4)
