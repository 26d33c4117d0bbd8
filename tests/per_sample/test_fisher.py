"""The three Fishers against their definitions, gradient by gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax

import retain
from retain.errors import InputError
from retain.per_sample.scores import Empirical, Exact, Sampled
from retain.samples.batches import Batch

N, CLASSES = 9, 4


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


@pytest.fixture
def data():
    return torch.randn(N, 5).double(), torch.randint(0, CLASSES, (N,))


def squared_gradients(model, x, y):
    """(∂ log p(y|x) / ∂θ)² for one sample, by ordinary autograd."""
    log_p = log_softmax(model(x[None]), -1)[0, y]
    gradients = torch.autograd.grad(log_p, list(model.parameters()))
    return {name: g**2 for (name, _), g in zip(model.named_parameters(), gradients)}


def mean_over(dicts):
    return {name: sum(d[name] for d in dicts) / len(dicts) for name in dicts[0]}


def assert_equal(importance, expected):
    assert importance.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(importance[name], value)
        assert value.abs().max() > 0


def test_empirical(model, data):
    x, y = data
    observed = (
        retain.EWC(model, fisher="empirical").observe([(x[:4], y[:4]), (x[4:], y[4:])]).observed
    )
    assert_equal(observed, mean_over([squared_gradients(model, *one) for one in zip(x, y)]))


def test_exact(model, data):
    x, _ = data
    observed = retain.EWC(model, fisher="exact").observe([x[:4], x[4:]]).observed
    each = []
    for one in x:
        p = model(one[None]).softmax(-1)[0].detach()
        of_class = [squared_gradients(model, one, c) for c in range(CLASSES)]
        each.append(
            {name: sum(p[c] * of_class[c][name] for c in range(CLASSES)) for name in of_class[0]}
        )
    assert_equal(observed, mean_over(each))


def test_sampled_is_the_square_for_the_labels_that_were_drawn(model, data):
    x, _ = data
    drawn = Sampled(torch.Generator().manual_seed(7)).target(model(x).detach(), Batch.of(x))
    assert drawn.unique().numel() > 1
    observed = retain.EWC(model, fisher="sampled", seed=7).observe([x]).observed
    assert_equal(observed, mean_over([squared_gradients(model, *one) for one in zip(x, drawn)]))


@pytest.mark.parametrize("fisher", ["sampled", "exact", "empirical"])
def test_the_size_of_batches_does_not_matter(model, fisher):
    x, y = torch.randn(64, 5).double(), torch.randint(0, CLASSES, (64,))
    whole = retain.EWC(model, fisher=fisher).observe([(x, y)]).observed
    for size in (1, 3, 7):
        batches = list(zip(x.split(size), y.split(size)))
        assert_equal(retain.EWC(model, fisher=fisher).observe(batches).observed, dict(whole))


def test_labels_are_drawn_as_the_model_says():
    logits = torch.tensor([[0.0, 1.0, -1.0, float("-inf")]])
    score = Sampled(torch.Generator().manual_seed(0))
    drawn = score.target(logits.expand(40_000, -1), Batch.of(torch.ones(1)))
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(share, logits.softmax(-1)[0], atol=0.01, rtol=0)
    assert share[3] == 0


def test_sampled_tends_to_exact(model):
    x = torch.randn(4, 5).double()
    exact = retain.EWC(model, fisher="exact").observe([x]).observed
    sampled = retain.EWC(model, fisher="sampled").observe([x.repeat(2000, 1)]).observed
    for name in exact:
        assert (sampled[name] - exact[name]).norm() < 0.1 * exact[name].norm()


def test_the_random_state_of_the_user_is_not_touched(model, data):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    retain.EWC(model, fisher="sampled").observe([data[0]])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("fisher", ["sampled", "exact", "empirical"])
def test_positions_are_choices_of_their_own(fisher):
    """[n, positions, classes]: log p is a sum over positions before anything is squared."""
    model = nn.Linear(3, 2 * CLASSES).double()
    x, y = torch.randn(5, 3).double(), torch.randint(0, CLASSES, (5, 2))
    y[1, 0] = -100

    def shaped(out):
        return out.unflatten(1, (2, CLASSES))

    def square(one, labels):
        log_p = log_softmax(shaped(model(one[None])), -1)[0]
        s = sum(log_p[t, c] for t, c in enumerate(labels) if c != -100)
        gradients = torch.autograd.grad(s, list(model.parameters()))
        return dict(zip(("weight", "bias"), (g**2 for g in gradients)))

    ewc = retain.EWC(model, fisher=fisher, output=shaped, seed=5)
    observed = ewc.observe([(x, y)]).observed
    if fisher == "empirical":
        expected = [square(*one) for one in zip(x, y.tolist())]
    elif fisher == "sampled":
        score = Sampled(torch.Generator().manual_seed(5))
        drawn = score.target(shaped(model(x)).detach(), Batch.of(x))
        expected = [square(*one) for one in zip(x, drawn.tolist())]
    else:  # the expectation over all pairs of labels
        expected = []
        for one in x:
            p = shaped(model(one[None])).softmax(-1)[0].detach()
            pairs = [(a, b) for a in range(CLASSES) for b in range(CLASSES)]
            squares = [(p[0, a] * p[1, b], square(one, (a, b))) for a, b in pairs]
            expected.append({n: sum(w * s[n] for w, s in squares) for n in ("weight", "bias")})
    assert_equal(observed, mean_over(expected))


def test_labels_in_a_dict():
    class Model(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs)

    model = Model(3, 2).double()
    x, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
    a = retain.EWC(model, fisher="empirical").observe([{"inputs": x, "labels": y}]).observed
    b = retain.EWC(model, fisher="empirical").observe([(x, y)]).observed
    assert_equal(a, dict(b))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, 'needs labels.*fisher="sampled"'),
        (torch.zeros(N), "torch.float32 of shape"),
        (torch.zeros(N, 1, dtype=torch.int64), r"expected whole numbers of shape \(9,\)"),
        (torch.full((N,), CLASSES), "label 4 is none of the output's 4 classes"),
        (torch.full((N,), -1), "label -1 is none"),
    ],
)
def test_labels_that_cannot_be_used(model, data, labels, said):
    x, _ = data
    with pytest.raises(InputError, match=said):
        retain.EWC(model, fisher="empirical").observe([x if labels is None else (x, labels)])


@pytest.mark.parametrize("score", [Sampled(torch.Generator()), Exact(), Empirical()])
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3, 4, 4)])
def test_outputs_that_hold_no_logits(score, shape):
    batch = Batch.of((torch.randn(N, 2), torch.zeros(shape[:-1], dtype=torch.int64)))
    output = torch.randn(shape)

    def whole():
        return score(output, score.target(output, batch))

    with pytest.raises(InputError, match=r"logits of shape \[n, classes\]"):
        whole()


def test_one_logit_as_two_classes_as_the_error_says():
    model = nn.Linear(3, 1).double()
    x = torch.randn(6, 3).double()
    two = retain.EWC(model, fisher="exact", output=lambda z: torch.cat([0 * z, z], 1))
    observed = two.observe([x]).observed
    p = model(x).sigmoid().detach()  # ∂ log p = (y − p) x, so F = p (1 − p) x²
    torch.testing.assert_close(observed["weight"], (p * (1 - p) * x**2).mean(0, keepdim=True))
