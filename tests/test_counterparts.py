"""Weights of other models and checkpoints: under which names, and where they may be instead."""

import copy
import warnings

import pytest
import torch
from torch import nn

import retain
from retain.counterparts import beside, lookalike, plain_names
from retain.errors import InputError

WRAPPED = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.")


class LowRank(nn.Module):
    """An adapter of one's own around a layer: W is one level deeper then."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.A = nn.Parameter(torch.randn(2, linear.in_features))
        self.B = nn.Parameter(torch.randn(linear.out_features, 2))

    def forward(self, x):
        return self.linear(x) + x @ self.A.T @ self.B.T


class Inside(nn.Linear):
    """An adapter of one's own that is the layer: W keeps its name."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.load_state_dict(linear.state_dict())
        self.A = nn.Parameter(torch.randn(2, linear.in_features))
        self.B = nn.Parameter(torch.randn(linear.out_features, 2))


@pytest.fixture
def case():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    memory = retain.MAS(base).observe(torch.randn(8, 4), progress=False).consolidate()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return base, tuned, memory


@pytest.mark.parametrize("before", WRAPPED)
def test_what_wrappers_put_before_all_names_does_not_matter(case, before):
    base, tuned, memory = case
    wrapped = {f"{before}{name}": w for name, w in tuned.state_dict().items()}
    expected = retain.repair(base.state_dict(), tuned.state_dict(), memory, amount=2.0)
    mended = retain.repair(base, wrapped, memory, amount=2.0)
    assert mended.keys() == wrapped.keys()  # as they were given
    assert all(torch.equal(mended[f"{before}{name}"], w) for name, w in expected.items())
    assert memory.forecast(wrapped).change == memory.forecast(tuned).change > 0
    first = {f"{before}{name}": w for name, w in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retain.repair(first, tuned.state_dict(), memory)


def test_a_module_of_the_models_own_that_is_called_module_keeps_its_name():
    names = plain_names(["module.a", "module.b"], held=["module.a"])
    assert names == {"module.a": "module.a", "module.b": "module.b"}
    assert plain_names(["module.a", "b"], held=["a"]) == {"module.a": "module.a", "b": "b"}
    assert plain_names([], held=["a"]) == {}


def test_a_missing_weight_is_told_where_it_may_be(case):
    base, tuned, memory = case
    longer = {f"encoder.{name}": w for name, w in tuned.state_dict().items()}
    own = copy.deepcopy(base)
    own[0] = LowRank(own[0])
    for asked in (
        lambda given: memory.forecast(given),
        lambda given: retain.repair(base, given, memory),
    ):
        with pytest.raises(InputError) as caught:
            asked(longer)
        assert "3.weight (encoder.3.weight" in str(caught.value).replace(
            " is missing in tuned", ""
        ).replace(" (2, 5) is missing", "")
        assert "Take off what stands before the names" in str(caught.value)
        with pytest.raises(InputError, match=r"0\.linear\.weight there has its shape.*W \+ B A"):
            asked(own)
    assert lookalike("0.weight", torch.Size([5, 4]), {"1.weight": torch.ones(5, 4)}) == ""
    assert lookalike("0.weight", torch.Size([5, 4]), {"a.0.weight": torch.ones(4, 5)}) == ""


def test_adapters_that_leave_the_weights_names_alone_are_told_of(case):
    base, _, memory = case
    own = copy.deepcopy(base)
    own[0] = Inside(own[0])
    with pytest.warns(UserWarning, match=r"0\.A, 0\.B: new beside weights .*merge them"):
        memory.forecast(own)
    with pytest.warns(UserWarning, match="nothing to repair") as told:
        retain.repair(base, own, memory)
    said = " ".join(str(one.message) for one in told)
    assert "0.A, 0.B: in tuned beside weights" in said
    assert "the same in every weight that the memory holds: there is nothing to repair" in said


def test_a_new_head_and_buffers_are_no_adapters(case):
    base, tuned, memory = case
    grown = nn.Sequential(*tuned, nn.Linear(2, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.forecast(grown)
        memory.forecast(grown.state_dict())
        retain.repair(base, grown, memory)
        retain.repair(base, grown.state_dict(), memory)
        memory.forecast(memory.model)
    there = {
        "w": torch.ones(1),
        "A": torch.ones(1),
        "head.w": torch.ones(1),
        "n": torch.ones(1).long(),
    }
    assert beside(there, {"w"}, ["w"]) == ["A"]


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_is_told_as_one(case, key):
    base, tuned, memory = case
    given = {key: tuned.state_dict(), "epoch": 3}
    with pytest.raises(InputError, match=rf"checkpoint: give its \['{key}'\]"):
        memory.forecast(given)
    with pytest.raises(InputError, match=rf"tuned is no state dict.*give its \['{key}'\]"):
        retain.repair(base, given, memory)


def test_arrays_are_no_tensors(case):
    base, tuned, memory = case
    arrays = {name: w.numpy() for name, w in tuned.state_dict().items()}
    with pytest.raises(InputError, match="holds ndarray, no tensors"):
        memory.forecast(arrays)
    with pytest.raises(InputError, match=r"No tensors: 0\.weight, 0\.bias, .*, …"):
        retain.repair(base, arrays, memory)


def test_a_model_that_was_made_anew_has_nothing_in_common_and_a_trained_one_has(case):
    torch.manual_seed(1)

    def net():
        return nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 10))

    model = net()
    memory = retain.MAS(model).observe(torch.randn(8, 40), progress=False).consolidate()
    with pytest.warns(UserWarning, match="nothing in common with those that the memory holds"):
        memory.forecast(net())
    far = copy.deepcopy(model)
    optimizer = torch.optim.Adam(far.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(far(torch.randn(32, 40)), torch.randint(10, (32,))).backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.forecast(far)
        memory.drift()


def test_labels_that_are_no_classes_say_what_to_give(case):
    _, _, memory = case
    batch = (torch.randn(8, 4), torch.randn(8))
    with pytest.raises(InputError, match=r"float32 of shape \(8,\), and no classes.*loss=lambda"):
        memory.forecast([batch])
    memory.forecast([(batch[0], torch.rand(8, 2))])  # a distribution is fine


@pytest.mark.parametrize("which", ["both", "base", "tuned"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_repaired_as_if_it_were_whole(case, dtype, which):
    base, tuned, memory = case
    first, last = (
        copy.deepcopy(m).to(dtype) if which in ("both", name) else m
        for name, m in (("base", base), ("tuned", tuned))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mended = retain.repair(first, last, memory, amount=2.0)
    expected = retain.repair(base, tuned, memory, amount=2.0).state_dict()
    for name, w in mended.state_dict().items():
        assert w.dtype == last.state_dict()[name].dtype
        assert torch.allclose(w.float(), expected[name].float(), atol=2e-2)


def test_integer_buffers_count_for_nothing_and_frozen_parts_stay_where_they_are(case):
    base, _, memory = case
    counted = base.state_dict()
    counted["1.num_batches_tracked"] += 5
    assert memory.forecast(counted).change == 0
    batch = (torch.randn(8, 4), torch.randint(2, (8,)))
    whole = memory.forecast([batch], lr=0.1)
    base[0].requires_grad_(False)
    part = memory.forecast([batch], lr=0.1)
    assert part.parameters["0.weight"].change == 0
    assert part.parameters["3.weight"].change == whole.parameters["3.weight"].change > 0
    assert memory.drift().change == 0
    base.requires_grad_(False)
    with pytest.raises(InputError, match="None of the weights that this memory holds"):
        memory.forecast([batch])


def test_adapters_that_peft_has_merged_are_not_added_again(case):
    peft = pytest.importorskip("peft")
    base, _, memory = case
    adapted = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(target_modules=["0", "3"]))
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    expected = copy.deepcopy(adapted).merge_and_unload().state_dict()
    adapted.merge_adapter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All adapters are already merged")
        mended = retain.repair(base, adapted, memory, amount=0).state_dict()
        change = memory.forecast(adapted).change
    assert mended.keys() == expected.keys()
    assert all(torch.allclose(mended[n], w, atol=1e-6) for n, w in expected.items())
    assert change == pytest.approx(memory.forecast(expected).change, rel=1e-4)
