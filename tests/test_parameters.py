"""Names of parameters, and which of them are picked."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from retain.errors import InputError, ModelError
from retain.parameters import (
    Selection,
    is_finite,
    named_parameters,
    snapshot,
    summed_in,
    unwrapped,
    what_became_of,
)


def network():
    blocks = nn.Sequential(*(nn.ModuleDict({"attn": nn.Linear(2, 2)}) for _ in range(2)))
    return nn.ModuleDict({"blocks": blocks, "head": nn.Linear(2, 3), "head2": nn.Linear(2, 3)})


EVERY = [
    "blocks.0.attn.weight", "blocks.0.attn.bias", "blocks.1.attn.weight", "blocks.1.attn.bias",
    "head.weight", "head.bias", "head2.weight", "head2.bias",
]  # fmt: skip


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, EVERY),
        ("head", None, ["head.weight", "head.bias"]),
        ("head*", None, EVERY[4:]),
        (["head.bias", "head2.bias"], None, ["head.bias", "head2.bias"]),
        ("blocks.*.attn", None, EVERY[:4]),
        ("*.bias", "head2", ["blocks.0.attn.bias", "blocks.1.attn.bias", "head.bias"]),
        (None, ("blocks", "*.bias"), ["head.weight", "head2.weight"]),
        ("blocks.1", None, EVERY[2:4]),
    ],
)
def test_names_modules_and_wildcards(include, exclude, expected):
    assert list(Selection.of(include, exclude).trainable(network())) == expected


def test_frozen_parameters_match_but_are_not_trainable():
    model = network()
    model["head"].requires_grad_(False)
    picked = Selection.of("head*", None)
    assert list(picked.matching(model)) == EVERY[4:]
    assert list(picked.trainable(model)) == EVERY[6:]


def test_an_include_that_matches_nothing_says_what_may_have_been_meant():
    with pytest.raises(InputError, match=r"'heads'.*Did you mean 'head'") as caught:
        Selection.of(["heads", "blocks", "zzz"], None).trainable(network())
    assert "'zzz'" in str(caught.value)
    assert "'blocks'." not in str(caught.value)
    with pytest.raises(InputError, match="picks nothing"):
        Selection.of([], None).trainable(network())


def test_an_exclude_that_matches_nothing_is_a_warning():
    with pytest.warns(UserWarning, match=r"exclude= matches no parameter with 'haed'.*'head'"):
        Selection.of(None, "haed").trainable(network())


def test_patterns_are_strings():
    with pytest.raises(InputError, match="include= holds Parameter"):
        Selection.of([network()["head"].weight], None)


@pytest.mark.parametrize("model", [nn.ReLU(), network().requires_grad_(False)])
def test_a_model_without_trainable_parameters(model):
    with pytest.raises(ModelError, match="No trainable parameter"):
        Selection.of(None, None).trainable(model)


def test_lazy_and_complex_parameters_are_named():
    with pytest.raises(ModelError, match=r"without a shape yet: 0\.weight, 0\.bias"):
        Selection.of(None, None).trainable(nn.Sequential(nn.LazyLinear(3)))
    model = nn.Linear(2, 2)
    model.register_parameter("phase", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    with pytest.raises(ModelError, match="Complex parameters: phase"):
        Selection.of(None, None).trainable(model)
    assert list(Selection.of(None, "phase").trainable(model)) == ["weight", "bias"]


def test_a_tied_parameter_appears_once_and_answers_to_all_its_names():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
    model["out"].weight = model["embed"].weight
    assert list(named_parameters(model)) == ["embed.weight"]
    assert list(Selection.of("out", None).trainable(model)) == ["embed.weight"]
    with pytest.raises(ModelError, match="No trainable"):
        Selection.of(None, "out").trainable(model)


def test_wrapping_and_compiling_change_no_name():
    model = network()
    names = list(named_parameters(model))
    for wrapped in (
        torch.compile(model),
        nn.DataParallel(model),
        nn.DataParallel(torch.compile(model)),
    ):
        assert unwrapped(wrapped) is model
        assert list(named_parameters(wrapped)) == names
    model["blocks"][0]["attn"] = torch.compile(model["blocks"][0]["attn"])
    assert list(named_parameters(model)) == names


def test_a_part_named_module_is_no_wrapper():
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert list(named_parameters(model)) == ["module.weight", "module.bias"]


def test_not_a_model():
    with pytest.raises(InputError, match=r"model is a dict; expected a torch\.nn\.Module"):
        unwrapped({"weight": torch.ones(2)})


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_snapshot_is_never_a_view(dtype):
    live = torch.arange(6.0).reshape(2, 3)
    for tensor in (live, live.t()):
        copy = snapshot(tensor, dtype, None)
        expected = tensor.clone()
        tensor.add_(1)
        assert torch.equal(copy.float(), expected)
        assert copy.dtype == (dtype or torch.float32)


def test_parameters_without_values_are_named_the_first_five_of_them():
    def deep(count):
        return nn.Sequential(*(nn.Linear(2, 2, bias=False, device="meta") for _ in range(count)))

    with pytest.raises(ModelError) as caught:
        Selection.of(None, None).trainable(deep(5))
    assert "0.weight, 1.weight, 2.weight, 3.weight, 4.weight. Load" in str(caught.value)
    with pytest.raises(ModelError) as caught:
        Selection.of(None, None).trainable(deep(6))
    assert "3.weight, 4.weight …. Load" in str(caught.value)


def test_what_the_model_has_is_shown_by_four_names():
    for count, end in ((4, "3.weight."), (6, "3.weight, …."), (5, "3.weight, ….")):
        model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(count)))
        with pytest.raises(InputError) as caught:
            Selection.of("nowhere", None).trainable(model)
        assert str(caught.value).endswith(f"The model has 0.weight, 1.weight, 2.weight, {end}")


def test_a_whole_name_may_be_what_was_meant():
    with pytest.raises(InputError, match=r"Did you mean 'head2\.weight'"):
        Selection.of("head2.weigth", None).trainable(network())


def test_a_snapshot_in_another_type_is_copied_once():
    with Clones() as clones:
        snapshot(torch.ones(3), torch.bfloat16, None)
    assert clones.count == 0
    with Clones() as clones:
        snapshot(torch.ones(3), None, None)
    assert clones.count == 1


class Clones(TorchDispatchMode):
    """Counts copies of whole tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ == "clone"
        return func(*args, **(kwargs or {}))


def test_what_became_of_a_parameter():
    model = network()
    assert what_became_of(model, "gone.weight") == "is gone"
    model["head2"].weight = model["head"].weight = nn.Parameter(torch.ones(3, 2))
    assert what_became_of(model, "head2.weight") == "is now the same parameter as head.weight"
    adapted = nn.ModuleDict({"head": nn.ModuleDict({"base_layer": nn.Linear(2, 3)})})
    assert "LoraPenalty" in what_became_of(adapted, "head.weight")


def test_sums_are_kept_in_single_precision_but_for_double():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert summed_in(dtype) == torch.float32
    assert summed_in(torch.float64) == torch.float64


def test_an_exclude_that_matches_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(Selection.of(None, "blocks").trainable(network())) == EVERY[4:]


def test_brackets_in_a_name_are_meant_as_they_are():
    model = nn.ModuleDict({"x[0]": nn.Linear(2, 2)})
    whole = ".".join(["x[0]", "weight"])
    assert list(Selection.of(whole, None).trainable(model)) == [whole]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_numbers_of_any_width_are_asked_whether_they_are_finite(dtype):
    assert is_finite(torch.tensor([0.0, -1.0]).to(dtype))
    assert not is_finite(torch.tensor([0.0, float("nan")]).to(dtype))


def test_a_number_too_large_for_single_precision_is_finite():
    assert is_finite(torch.tensor([1e300], dtype=torch.float64))
