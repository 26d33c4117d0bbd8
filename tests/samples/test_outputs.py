"""Which tensor F(x) is found in what a model returns, and what is refused."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from retain.errors import InputError, NonFiniteError
from retain.samples.outputs import checked, first_tensor

F, OTHER = torch.randn(4, 2), torch.randn(4, 9)
INDEX = torch.arange(4)
Named = namedtuple("Named", ["features", "logits"])


@pytest.mark.parametrize(
    "returned",
    [
        F,
        (F, OTHER),
        [F],
        (INDEX, F, OTHER),
        {"out": F, "aux": OTHER},
        {"aux": OTHER, "logits": F},
        OrderedDict(loss=None, out=F),
        ({"name": "text"}, [(None, F)], OTHER),
        Named(OTHER, F),
        SimpleNamespace(features=OTHER, logits=F),
        {"deep": {"logits": F}, "late": OTHER},
    ],
    ids=lambda returned: type(returned).__name__,
)
def test_found(returned):
    assert first_tensor(returned) is F


def test_found_in_hugging_face_outputs():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    of_classes = outputs.SequenceClassifierOutput(logits=F, hidden_states=(OTHER,))
    assert first_tensor(of_classes) is F
    of_features = outputs.BaseModelOutputWithPooling(last_hidden_state=F, pooler_output=OTHER)
    assert first_tensor(of_features) is F
    assert first_tensor(of_features.to_tuple()) is F


@dataclass
class Opaque:
    features: torch.Tensor


@pytest.mark.parametrize(
    "returned", [None, 3, "text", (), {}, (None, "a"), Opaque(F)], ids=lambda r: type(r).__name__
)
def test_nothing_found(returned):
    with pytest.raises(
        InputError, match=rf"returns a {type(returned).__name__} without a tensor.*output="
    ):
        first_tensor(returned)


def test_an_integer_tensor_is_found_only_to_be_refused():
    assert first_tensor(INDEX) is INDEX
    with pytest.raises(
        InputError, match=r"is a torch.int64; expected a floating point tensor.*output="
    ):
        checked(first_tensor(INDEX), 4)


def test_what_is_checked_is_returned():
    for shape in ((4,), (4, 2), (4, 3, 2)):
        picked = torch.randn(shape, requires_grad=True)
        assert checked(picked, 4) is picked


@pytest.mark.parametrize(
    ("picked", "message"),
    [
        ("text", "a str; expected a floating"),
        (None, "a NoneType; expected"),
        (torch.randn(4, 2, dtype=torch.complex64, requires_grad=True), "complex64; expected"),
        (torch.tensor(1.0, requires_grad=True), r"shape \(\) for a batch of 4 samples"),
        (torch.randn(1, 2, requires_grad=True), r"shape \(1, 2\).*expected 4 in its first"),
        (torch.randn(2, 4, requires_grad=True), r"shape \(2, 4\).*batch_dim="),
        (F, "does not depend on the protected parameters"),
    ],
    ids=["text", "none", "complex", "scalar", "mean", "transposed", "detached"],
)
def test_refused(picked, message):
    with pytest.raises(InputError, match=f"(?s)output .*{message}"):
        checked(picked, 4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(bad):
    values = torch.randn(4, 3, 2)
    values[1, 2, 0] = values[3, 0, 1] = bad
    with pytest.raises(NonFiniteError, match=r"sample\(s\) \[1, 3\]"):
        checked(values.requires_grad_(), 4)
