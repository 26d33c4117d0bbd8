"""The local rule against its definition: exact for every kind of layer, whatever follows it."""

import warnings
from unittest import mock

import pytest
import torch
from torch import nn

from retain.borrowed import borrowed
from retain.errors import ModelError, NonFiniteError
from retain.local_rule import layer_sums as sums_module
from retain.local_rule.activations import NEVER_NEGATIVE, silu
from retain.local_rule.rule import LocalRule
from retain.samples.batches import Batch

from .cases import CASES, Residual, Twice, two_layers
from .truth import local_truth


def rule_for(model, **options):
    return LocalRule(model, dict(model.named_parameters()), **options)


def sums_of(model, inputs, *, batch_dim=0, rule=None):
    rule = rule or rule_for(model)
    with borrowed(model):
        sums = rule(Batch.of(inputs, batch_dim=batch_dim))
    return {name: total.clone() for name, total in sums.items()}


def build(name):
    case = CASES[name]
    return case, case.model().double().eval(), torch.randn(case.shape, dtype=torch.float64)


def assert_same(sums, truth, **tolerance):
    assert sums.keys() == truth.keys()
    for name, total in sums.items():
        torch.testing.assert_close(total, truth[name], **tolerance)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CASES)
def test_is_exact(name):
    case, model, inputs = build(name)
    truth = local_truth(model, inputs, case.ends, batch_dim=case.batch_dim)
    assert all(total.count_nonzero() for total in truth.values())
    sums = sums_of(model, inputs, batch_dim=case.batch_dim)
    assert_same(sums, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "name",
    [
        *("conv2d", "conv2d, depthwise", "conv2d, groups, dilation, stride", "conv2d, same"),
        *("conv1d", "conv3d", "conv_transpose2d", "frames", "residual", "tokens", "inputs first"),
        *("four dimensions", "linear ReLU", "linear in-place ReLU", "linear, batch-norm"),
    ],
)
def test_a_few_samples_at_a_time(name, monkeypatch):
    case, model, _ = build(name)
    inputs = torch.randn(41, *case.shape[1:], dtype=torch.float64)
    split = mock.Mock(wraps=sums_module._parts)
    monkeypatch.setattr(sums_module, "TOGETHER", 1)
    monkeypatch.setattr(sums_module, "_parts", split)
    inputs[::2] = inputs[::2].abs()  # some parts without negative numbers, and some with
    sums = sums_of(model, inputs)
    assert any(len(sums_module._parts(*call.args)) > 1 for call in list(split.call_args_list))
    assert_same(sums, local_truth(model, inputs, case.ends), rtol=1e-9, atol=1e-12)


class Changes(nn.Module):
    """What ReLU has written is changed before another layer runs."""

    def __init__(self, change, *, inplace):
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(5, 4), nn.ReLU(inplace), nn.Linear(4, 2)
        self.change = change

    def forward(self, x):
        y = self.act(self.fc(x))
        self.change(y)
        return self.head(y)


def unseen(y):
    with torch._C.DisableTorchFunction():
        y.neg_()


CHANGES = {
    "in place": lambda y: y.mul_(-3),
    "part of it": lambda y: y[:, 1:].sub_(2),
    "an item": lambda y: y.__setitem__(0, 7.0),
    "its data": lambda y: y.data.mul_(-3),
    "detached": lambda y: y.detach().add_(1),
    "as out": lambda y: torch.mul(y, 2, out=y),
    "unseen": unseen,
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_what_relu_wrote_may_be_changed_afterwards(change, mode, inplace):
    model = Changes(CHANGES[change], inplace=inplace).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    with mode():
        sums = sums_of(model, x)
    model.change = lambda y: None
    assert_same(sums, local_truth(model, x, {"fc": "act"}))


def test_a_hook_may_change_what_relu_wrote():
    model = two_layers(nn.ReLU()).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    expected = sums_of(model, x)
    model[1].register_forward_hook(lambda module, args, y: y.mul_(-3))
    assert_same({"0.weight": sums_of(model, x)["0.weight"]}, {"0.weight": expected["0.weight"]})


def test_what_is_never_negative_is_not():
    z = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    assert all((formula(z) >= 0).all() for formula in NEVER_NEGATIVE)
    assert (silu(z) < 0).any()


def test_hebb():
    """After ReLU, Ω is twice the mean co-activation of the two neurons."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(50, 6)
    below = model[:2](x).detach()
    above = model[2:4](below).detach()
    omega = sums_of(model, x)["2.weight"] / 50
    assert omega.count_nonzero()
    for j in range(4):
        for i in range(5):
            # Ω_ij = 1/N Σ_k 2 y_i^k y_j^k
            torch.testing.assert_close(omega[j, i], 2 * (above[:, j] * below[:, i]).mean())


def test_signs_do_not_cancel_between_samples():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, 2)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    both = sums_of(model, torch.cat([x, x * torch.tensor([-1.0, 1.0, -1.0]).double()]))
    one = sums_of(model, x)
    assert (both["0.weight"] > one["0.weight"]).all()


@pytest.mark.parametrize(
    "name", ["tokens", "flattened tokens", "conv2d", "conv2d, reflect", "used twice", "residual"]
)
def test_does_not_depend_on_the_batch_size(name):
    _, model, _ = build(name)
    inputs = torch.randn(8, *CASES[name].shape[1:], dtype=torch.float64)
    whole = sums_of(model, inputs)
    for size in (1, 3, 7):
        rule = rule_for(model)
        parts = [sums_of(model, part, rule=rule) for part in inputs.split(size)]
        assert_same({key: sum(p[key] for p in parts) for key in whole}, whole)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_backward_is_run(mode):
    case, model, inputs = build("conv2d")
    truth = local_truth(model, inputs, case.ends)
    forbidden = AssertionError("a backward pass")
    with (
        mode(),
        mock.patch.object(torch.autograd, "backward", side_effect=forbidden),
        mock.patch.object(torch.autograd, "grad", side_effect=forbidden),
        borrowed(model),
    ):
        sums = rule_for(model)(Batch.of(inputs))
    assert_same(sums, truth)
    assert not any(total.requires_grad or total.is_inference() for total in sums.values())
    assert all(p.grad is None for p in model.parameters())


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return {"classes": torch.softmax(self.first(x), 1), "boxes": [self.second(x).view(-1, 2)]}


def test_heads_are_left_out():
    model = TwoHeads()
    rule = rule_for(model)
    assert sums_of(model, torch.randn(6, 5), rule=rule).keys() == {"body.weight", "body.bias"}
    assert rule.routes["first.weight"] == rule.routes["second.bias"] == "none: head"


def test_heads_can_be_included():
    model = TwoHeads().double()
    x = torch.randn(6, 5, dtype=torch.float64)
    sums = sums_of(model, x, rule=rule_for(model, heads=True))
    truth = local_truth(model, x, {"first": "first", "second": "second"})
    assert_same({name: sums[name] for name in truth}, truth)


def test_a_frozen_head_is_still_the_head():
    """The last layer of the body does not become the head when the head is not wanted."""
    model = two_layers(nn.ReLU())
    rule = LocalRule(model, {n: p for n, p in model.named_parameters() if not n.startswith("4")})
    assert "2.weight" in sums_of(model, torch.randn(6, 5), rule=rule)


def test_only_wanted_parameters():
    model = two_layers(nn.ReLU())
    rule = LocalRule(model, {"0.bias": model[0].bias, "2.weight": model[2].weight})
    x = torch.randn(6, 5)
    every = sums_of(model, x)
    assert_same(
        sums_of(model, x, rule=rule), {name: every[name] for name in ("0.bias", "2.weight")}
    )


def test_routes_say_what_follows_each_layer():
    rule = rule_for(Residual())
    sums_of(rule.model, torch.randn(4, 2, 6, 6), rule=rule)
    assert rule.routes["first.weight"] == "convolution, batch-norm, relu"
    assert rule.routes["second.bias"] == "convolution, batch-norm"
    assert rule.routes["norm.weight"].startswith("none")
    assert rule.routes["head.weight"] == "none: head"


def test_packed_projections_have_no_rule():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    rule = rule_for(nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2)))
    sums = sums_of(rule.model, torch.randn(4, 3, 8), rule=rule)
    assert sums.keys() == {f"0.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert rule.routes["0.linear1.weight"] == "linear, gelu"


def test_a_reparametrised_weight_has_no_rule():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.ReLU())
    assert sums_of(model, torch.randn(6, 5)).keys() == {"0.bias"}


class Experts(nn.Module):
    """Which rows the layer reads depends on the data."""

    def __init__(self):
        super().__init__()
        self.expert, self.body, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        chosen = x[..., 0] > 0
        y = torch.zeros_like(x)
        y[chosen] = self.expert(x[chosen])
        return self.head(torch.relu(self.body(x)).mean(1) + y.mean(1))


class Mixes(nn.Module):
    """Every sample is read relative to the others of its batch."""

    def __init__(self):
        super().__init__()
        self.first, self.body, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.body(x - x.mean(0))))


@pytest.mark.parametrize(
    ("model", "shape", "left_out"),
    [(Experts(), (4, 3, 5), "expert"), (Mixes(), (4, 5), "body")],
)
def test_rows_that_cannot_be_told_apart_are_left_out_aloud(model, shape, left_out):
    rule = rule_for(model)
    with pytest.warns(UserWarning, match=rf"leaves out \['{left_out}.weight'\]"):
        sums = sums_of(model, torch.randn(shape), rule=rule)
    assert sums
    assert not any(name.startswith(left_out) for name in sums)
    assert rule.routes[f"{left_out}.weight"] == "none: its rows cannot be told apart by sample"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sums_of(model, torch.randn(shape), rule=rule)


def test_a_weight_that_is_used_more_often_later():
    """The number of uses may depend on the data; nothing of a first use alone is kept."""

    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps, self.fc, self.act = 1, nn.Linear(5, 5), nn.Tanh()
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            for _ in range(self.steps):
                x = self.act(self.fc(x))
            return self.head(x)

    model, x = Loops().double(), torch.randn(6, 5, dtype=torch.float64)
    rule = rule_for(model)
    for steps in (1, 3, 2, 1):
        model.steps = steps
        assert_same(sums_of(model, x, rule=rule), local_truth(model, x, {"fc": "act"}))


def test_half_precision_is_summed_in_single():
    model = two_layers(nn.ReLU())
    x = torch.randn(32, 5).bfloat16()
    exact = sums_of(model.bfloat16().float(), x.float())
    sums = sums_of(model.bfloat16(), x)
    assert all(total.dtype == torch.float32 for total in sums.values())
    assert_same(sums, exact, rtol=0.05, atol=0.05)


def test_autocast_is_left_to_the_model():
    model, x = two_layers(nn.ReLU()), torch.randn(32, 5)
    exact = sums_of(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        sums = sums_of(model, x)
    assert all(total.dtype == torch.float32 for total in sums.values())
    assert_same(sums, exact, rtol=0.05, atol=0.05)


def test_no_layer_is_an_error():
    with pytest.raises(ModelError, match=r"(?s)No layer .*0.weight: none: head.*retain.MAS"):
        sums_of(nn.Sequential(nn.Linear(5, 2)), torch.randn(6, 5))


def test_a_scripted_model_is_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(two_layers(nn.ReLU()))
    with pytest.raises(ModelError, match="scripted"):
        rule_for(scripted)


def test_nan_is_an_error_and_the_next_batch_is_not_touched_by_it():
    model, x = two_layers(nn.ReLU()), torch.randn(6, 5)
    rule = rule_for(model)
    before = sums_of(model, x, rule=rule)
    broken = x.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=r"layers of .*0\.weight"):
        sums_of(model, broken, rule=rule)
    assert_same(sums_of(model, x, rule=rule), before)


def test_the_model_is_as_it_was():
    model = Twice(nn.ReLU()).train()
    names = [set(vars(module)) for module in model.modules()]
    sums_of(model, torch.randn(6, 5))
    assert [set(vars(module)) for module in model.modules()] == names
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Renormalising(nn.Module):
    """Its forward writes to a table, and keeps something from call to call."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4, max_norm=0.5)
        self.inner, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.calls = []

    def forward(self, tokens):
        self.calls.append(len(tokens))
        self.latest = tokens
        return self.last(torch.relu(self.inner(self.table(tokens)).mean(1)))


@pytest.mark.parametrize("samples", [1, 6])
def test_what_a_forward_changes_in_the_model_is_given_back(samples):
    model, tokens = Renormalising(), torch.randint(9, (samples, 3))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    rule = rule_for(model)
    for _ in range(2):
        sums_of(model, tokens, rule=rule)
        for name, t in model.state_dict().items():
            torch.testing.assert_close(t, before[name], rtol=0, atol=0)
        assert model.calls == []
        assert not hasattr(model, "latest")
    model(tokens)
    assert not torch.equal(model.table.weight, before["table.weight"])  # as it does by itself
