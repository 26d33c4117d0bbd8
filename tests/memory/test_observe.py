"""From data to importance: every kind of batch, exactly, and with everything given back."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import retain
from retain.errors import InputError
from retain.memory import observing
from retain.memory.running_sums import Running

N = 23


class Net(nn.Module):
    """Batch-norm and dropout, so that modes and random state matter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x)).relu()))


@pytest.fixture
def model():
    return Net().double()


@pytest.fixture
def data():
    return torch.randn(N, 4).double()


def by_definition(model, data, score=lambda f: f.square().sum()):
    """Ω = 1/N Σₖ |∂s(F(xₖ))/∂θ|, one sample at a time."""
    twin = copy.deepcopy(model).eval()
    total = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for x in data:
        gradients = torch.autograd.grad(score(twin(x[None])), list(twin.parameters()))
        for (name, omega), g in zip(total.items(), gradients):
            total[name] = omega + g.abs() / len(data)
    return total


def assert_equal(importance, expected, samples=N):
    assert importance.samples == samples
    assert importance.keys() == expected.keys()
    for name, omega in expected.items():
        torch.testing.assert_close(importance[name], omega)
        assert omega.max() > 0


Pair = namedtuple("Pair", ["x", "y"])
LABELS = torch.zeros(N)


class Stream(IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)


KINDS = {
    "one tensor": lambda x: x,
    "list of tensors": lambda x: list(x.split(5)),
    "tuple of tensors": lambda x: x.split(5),
    "generator": lambda x: (part for part in x.split(7)),
    "(input, labels)": lambda x: [(x[:20], LABELS[:20]), (x[20:], LABELS[20:])],
    "[input, labels]": lambda x: [[x, LABELS]],
    "named tuple": lambda x: [Pair(x, LABELS)],
    "dict": lambda x: [{"x": part} for part in x.split(5)],
    "ordered dict, labels": lambda x: [OrderedDict(x=x, labels=LABELS)],
    "((arguments), labels)": lambda x: [((x,), LABELS)],
    "loader": lambda x: DataLoader(TensorDataset(x, LABELS), batch_size=4),
    "loader of tensors": lambda x: DataLoader(list(x), batch_size=4),
    "stream": lambda x: DataLoader(Stream(x), batch_size=4),
    "stream of batches": lambda x: Stream(x.split(4)),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_data(model, data, kind):
    memory = retain.MAS(model)
    assert memory.observe(kind(data)) is memory
    assert_equal(memory.observed, by_definition(model, data))


@pytest.mark.parametrize("score", ["norm", "each-output"])
def test_other_scores(model, data, score):
    expected = by_definition(model, data, lambda f: f.norm())
    if score == "each-output":
        each = [by_definition(model, data, lambda f, d=d: f[0, d]) for d in range(3)]
        expected = {name: sum(one[name] for one in each) for name in each[0]}
    assert_equal(retain.MAS(model, score=score).observe(data).observed, expected)


def test_a_large_tensor_is_cut_into_batches(model):
    sizes = []
    model.first.register_forward_pre_hook(lambda _m, args: sizes.append(len(args[0])))
    memory = retain.MAS(model, check=False).observe(torch.randn(1000, 4).double())
    assert memory.observed.samples == 1000
    assert max(sizes) <= 128


def test_output_picks_what_is_differentiated(model, data):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return {"hidden": x, "answer": self.net(x)}

    memory = retain.MAS(Several(), output=lambda returned: returned["answer"]).observe(data)
    expected = {f"net.{name}": omega for name, omega in by_definition(model, data).items()}
    assert_equal(memory.observed, expected)


def test_hugging_face_outputs_and_batches(data):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=12,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).double()
    tokens = torch.randint(0, 20, (5, 6))
    batch = transformers.BatchEncoding(
        {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens[:, 0] % 2}
    )
    memory = retain.MAS(model).observe([batch])
    alone = retain.MAS(model, output=lambda out: out.logits)
    alone.observe(
        {"input_ids": t[None], "attention_mask": torch.ones_like(t[None])} for t in tokens
    )
    for name, omega in alone.observed.items():
        torch.testing.assert_close(memory.observed[name], omega)


def test_include_and_exclude(model, data):
    every = by_definition(model, data)
    memory = retain.MAS(model, include=["first", "last"], exclude="*.bias").observe(data)
    assert_equal(memory.observed, {n: every[n] for n in ("first.weight", "last.weight")})
    model.first.requires_grad_(False)
    rest = {n: omega for n, omega in every.items() if not n.startswith("first")}
    assert_equal(retain.MAS(model).observe(data).observed, rest)


def test_again_and_again_is_all_at_once(model, data):
    memory = retain.MAS(model)
    memory.observe(data[:3]).observe([data[3:10], data[10:11]]).observe(data[11:])
    assert_equal(memory.observed, by_definition(model, data))


@pytest.mark.parametrize("limit", [1, 4, 5, 12, 23, 100])
def test_max_samples_stops_in_the_middle_of_a_batch(model, data, limit):
    asked = []

    def batches():
        for part in data.split(5):
            asked.append(len(part))
            yield part

    memory = retain.MAS(model).observe(batches(), max_samples=limit)
    taken = min(limit, N)
    assert_equal(memory.observed, by_definition(model, data[:taken]), taken)
    assert sum(asked) - asked[-1] < taken, "more was asked for than was needed"
    memory.observe(data, max_samples=2)
    assert memory.observed.samples == taken + 2


def test_sums_are_kept_in_single_precision_whatever_is_stored():
    """bfloat16 sums would stop growing after 256 samples."""
    model = nn.Linear(3, 2)
    data = torch.randn(3000, 3)
    exact = retain.MAS(model).observe(data).observed
    memory = retain.MAS(model, dtype=torch.bfloat16).observe(data)
    for name, omega in exact.items():
        assert torch.equal(memory.observed[name], omega)
        assert memory.observed[name].dtype == torch.float32
    memory.consolidate()
    assert {t.dtype for t in memory.importance.values()} == {torch.bfloat16}
    assert {t.dtype for t in memory.anchor.values()} == {torch.bfloat16}
    for name, omega in exact.items():
        torch.testing.assert_close(memory.importance[name].float(), omega, rtol=4e-3, atol=0)


def test_half_precision_models_have_single_precision_sums():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    memory = retain.MAS(model, check=False).observe(torch.randn(1000, 3).bfloat16())
    single = copy.deepcopy(model).float()
    exact = retain.MAS(single).observe(torch.randn(1, 3)).observed
    assert {t.dtype for t in memory.observed.values()} == {torch.float32}
    assert memory.observed.keys() == exact.keys()


# ---- borrowed, then given back ----


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_given_back_as_it_was(model, data, fails):
    model.train()
    model.drop.eval()
    model(data).sum().backward()
    hook = model.first.register_forward_hook(lambda *_: None)
    state = copy.deepcopy(model.state_dict())
    gradients = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    modes = {name: m.training for name, m in model.named_modules()}
    hooks = {name: dict(m._forward_hooks) for name, m in model.named_modules()}
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    requires = {name: p.requires_grad for name, p in model.named_parameters()}
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    memory = retain.MAS(model)
    if fails:
        with pytest.raises(retain.RetainError):
            memory.observe([data, torch.full((2, 4), torch.nan).double()])
    else:
        memory.observe(data).consolidate()
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for name, p in model.named_parameters():
        assert p.grad is gradients[name][0]
        assert torch.equal(p.grad, gradients[name][1])
        assert p.requires_grad == requires[name]
        assert not p._backward_hooks
    assert modes == {name: m.training for name, m in model.named_modules()}
    assert hooks == {name: dict(m._forward_hooks) for name, m in model.named_modules()}
    assert attributes == {name: set(vars(m)) for name, m in model.named_modules()}
    hook.remove()


def test_under_no_grad_and_in_inference_mode(model, data):
    expected = by_definition(model, data)
    with torch.no_grad():
        memory = retain.MAS(model).observe(data)
    assert_equal(memory.observed, expected)


def test_a_compiled_model_is_observed_eagerly_under_its_own_names(model, data):
    memory = retain.MAS(torch.compile(model)).observe(data)
    assert_equal(memory.observed, by_definition(model, data))


def test_no_bar_without_a_terminal(model, data, capfd):
    retain.MAS(model).observe(data)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_a_bar_on_a_terminal_that_can_be_turned_off(model, data, monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda _self: True))
    retain.MAS(model).observe(list(data.split(5)))
    assert "observing" in capfd.readouterr().err
    retain.MAS(model).observe(list(data.split(5)), progress=False)
    assert capfd.readouterr().err == ""


# ---- half-way ----


BROKEN = {
    "wrong kind": ("three", retain.errors.InputError),
    "wrong shape": (torch.ones(2, 9).double(), retain.errors.InputError),
    "nan": (torch.full((2, 4), torch.nan).double(), retain.errors.NonFiniteError),
}


@pytest.mark.parametrize(("batch", "error"), BROKEN.values(), ids=BROKEN.keys())
def test_what_came_before_a_bad_batch_is_kept(model, data, batch, error):
    memory = retain.MAS(model)
    with pytest.raises(error, match=r"Batch 3 \(the first is 1\).* The 10 samples .* are kept"):
        memory.observe([data[:5], data[5:10], batch, data[10:]])
    assert_equal(memory.observed, by_definition(model, data[:10]), 10)
    memory.observe(data[10:])
    assert_equal(memory.observed, by_definition(model, data))
    memory.consolidate()


def test_a_gradient_that_is_not_finite(data):
    class Root(nn.Linear):
        def forward(self, x):
            return (super().forward(x) * (x[:, :1] > 0)).sqrt()

    model = Root(4, 3).double()
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(model.bias, 1.0)
    good = data[data[:, 0] > 0].abs()
    memory = retain.MAS(model, check=False)
    bad = good[:2].clone()
    bad[0, 0] = -1.0  # √0, whose slope is infinite, times 0
    with pytest.raises(retain.errors.NonFiniteError, match=r"Batch 2 .*gradients? .*weight"):
        memory.observe([good, bad])
    assert memory.observed.samples == len(good)


def test_the_first_batch_is_bad(model, data):
    memory = retain.MAS(model)
    with pytest.raises(retain.RetainError, match=r"Batch 1 .* Nothing is kept"):
        memory.observe(["no"])
    assert memory.observed.samples == 0
    assert_equal(memory.observe(data).observed, by_definition(model, data))


def test_an_interrupt_between_batches(model, data):
    def batches():
        yield data[:8]
        yield data[8:10]
        raise KeyboardInterrupt

    memory = retain.MAS(model)
    with pytest.raises(KeyboardInterrupt):
        memory.observe(batches())
    assert_equal(memory.observed, by_definition(model, data[:10]), 10)


def interrupted(act, line):
    """Whether a KeyboardInterrupt, before the n-th line of `retain/memory`, stopped `act`."""
    left = [line]

    def tracer(frame, event, _arg):
        if "retain/memory" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_at_any_line_leaves_whole_batches(model, data):
    batches = [data[:5], data[5:9], data[9:]]
    seen = set()
    for line in range(1, 4000, 19):
        memory = retain.MAS(model, check=False)
        stopped = interrupted(lambda memory=memory: memory.observe(batches, progress=False), line)
        kept = memory.observed
        seen.add(kept.samples)
        if kept.samples:
            assert_equal(kept, by_definition(model, data[: kept.samples]), kept.samples)
        if not stopped:
            break
    assert seen == {0, 5, 9, N}, "no interrupt fell into some stretch"


def test_an_interrupt_at_any_line_keeps_sums_and_count_together():
    for line in range(1, 100):
        running = Running()
        running.add({"a": torch.ones(2)}, 3)
        more = {"a": torch.ones(2), "b": torch.ones(1)}
        stopped = interrupted(lambda running=running, more=more: running.add(more, 4), line)
        total = running.sums["a"][0].item()
        assert (total, running.samples) in {(1.0, 3), (2.0, 7)}
        if not stopped:
            break
    assert line > 5
    assert running.samples == 7


def test_a_model_that_changed_shape_since_is_refused(model, data):
    memory = retain.MAS(model).observe(data)
    model.last = nn.Linear(6, 5).double()
    for act in (lambda: memory.observe(data), memory.consolidate):
        with pytest.raises(
            retain.errors.ModelError, match=r"last\.weight was \(3, 6\) and is \(5, 6\)"
        ):
            act()


def test_a_share_of_the_data_may_be_empty_beside_others(monkeypatch):
    """As on a rank that got none; alone it is an error."""
    memory = retain.MAS(nn.Linear(3, 2))
    with pytest.raises(InputError, match="holds no batch"):
        memory.observe([])
    monkeypatch.setattr(observing, "several", lambda: True)
    assert memory.observe([]) is memory
    assert memory.observe([torch.ones(4, 3)]).observed.samples == 4


@pytest.mark.parametrize(
    ("kind", "setting", "values"),
    [
        (retain.MAS, "output", (None, torch.tanh)),
        (retain.MAS, "score", ("squared-norm", "norm")),
        (retain.EWC, "fisher", ("exact", "sampled")),
    ],
)
def test_what_is_differentiated_is_the_same_for_all_samples(model, data, kind, setting, values):
    memory = kind(model, **{setting: values[0]}).observe([data], progress=False)
    setattr(memory, setting, values[1])
    with pytest.raises(retain.errors.StateError, match=rf"{setting} was changed after \d+ samples"):
        memory.observe([data], progress=False)
    setattr(memory, setting, values[0])
    memory.observe([data], progress=False).consolidate()
    setattr(memory, setting, values[1])
    memory.observe([data], progress=False)
    fresh = kind(model, **{setting: values[1]}).observe([data], progress=False)
    if values[1] != "sampled":
        for name, omega in fresh.observed.items():
            torch.testing.assert_close(memory.observed[name], omega)
