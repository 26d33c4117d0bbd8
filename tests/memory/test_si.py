"""Synaptic Intelligence: the way through training, against closed forms and by hand."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import retain
from retain.errors import InputError, StateError

A = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
GOAL = torch.tensor([1.0, -2.0], dtype=torch.float64)


class Quadratic(nn.Module):
    """½ (θ − c)ᵀ A (θ − c)."""

    def __init__(self, a=A):
        super().__init__()
        self.a = a
        self.theta = nn.Parameter(torch.tensor([-0.5, 0.7], dtype=torch.float64))

    def forward(self):
        d = self.theta - GOAL
        return 0.5 * d @ self.a @ d


def path_integral(a, start, time):
    """ωᵢ = ∫₀ᵀ gᵢ(t)² dt along θ' = −g, in closed form: g(t) = Σⱼ vⱼ λⱼ zⱼ exp(−λⱼ t)."""
    values, vectors = torch.linalg.eigh(a)
    b = values * (vectors.T @ (start - GOAL))
    sums = values[:, None] + values[None, :]
    decayed = (1 - torch.exp(-sums * time)) / sums
    return torch.einsum("ij,ik,j,k,jk->i", vectors, vectors, b, b, decayed)


def walked(si):
    """ω by name: the path integral since the last consolidation."""
    return si.state_dict()["tensors"]["observed"]


def descend(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()


@pytest.mark.parametrize("a", [A, torch.diag(torch.tensor([3.0, 0.5], dtype=torch.float64))])
def test_two_parameters_whose_path_integral_is_known(a):
    model = Quadratic(a)
    start, before = model.theta.detach().clone(), model().item()
    si = retain.SI(model, damping=0.01)
    rate, steps = 1e-3, 700
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    si.attach(optimizer)
    descend(model, optimizer, steps)
    omega = walked(si)["theta"]
    expected = path_integral(a, start, rate * steps)
    torch.testing.assert_close(omega, expected, rtol=3e-3, atol=0)
    # what the loss lost is what the parameters gained together
    assert abs(omega.sum().item() - (before - model().item())) < 3e-3 * omega.sum().item()
    si.consolidate()
    ended = model.theta.detach()
    torch.testing.assert_close(si.importance["theta"], omega / ((ended - start) ** 2 + 0.01))
    assert si.importance.samples == steps
    assert torch.equal(si.anchor["theta"], ended)


def test_smaller_steps_come_closer():
    errors = []
    for rate, steps in ((1e-2, 50), (1e-3, 500)):
        model = Quadratic()
        expected = path_integral(A, model.theta.detach().clone(), rate * steps)
        si = retain.SI(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        with si.attach(optimizer):
            descend(model, optimizer, steps)
        errors.append((walked(si)["theta"] - expected).norm())
    assert errors[1] < 0.15 * errors[0]


def test_a_way_uphill_makes_nothing_important():
    model = Quadratic()
    with torch.no_grad():
        model.theta.copy_(GOAL)
    si = retain.SI(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=5.0)
    si.attach(optimizer)
    descend(model, optimizer, 20)
    omega = walked(si)["theta"]
    assert omega[1] < 0
    si.consolidate()
    assert si.importance["theta"][1] == 0
    assert si.importance["theta"].min() == 0


def network():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 5, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def learned(si, optimizer, data, *, in_loss=False, by_hand=None):
    """Train; `by_hand` gets −g·Δθ of every step, g by a backward pass of the task's loss alone."""
    model = si.model
    for x, y in data:
        task = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        (loss + si.penalty() if in_loss else loss).backward()
        optimizer.step()
        for (name, p), b, g in zip(model.named_parameters(), before, task):
            if by_hand is not None:
                by_hand[name] = by_hand.get(name, 0) - g * (p.detach() - b)


@pytest.mark.filterwarnings("ignore:Nothing is protected")
@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive", "loss"])
@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.SGD(ps, lr=0.05),
        lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=0.01),
        lambda ps: torch.optim.Adam(ps, lr=0.01),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_the_gradient_it_integrates_is_the_tasks_alone(form, make):
    model = network()
    si = retain.SI(model, strength=0.1)
    total = {}
    for task in range(3):
        optimizer, by_hand = make(model.parameters()), {}
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        with si.attach(optimizer, form=form):
            data = batches(10, seed=task)
            learned(si, optimizer, data, in_loss=form == "loss", by_hand=by_hand)
        assert si.observed.samples == 10
        for name, omega in by_hand.items():
            torch.testing.assert_close(walked(si)[name], omega)
            moved = model.get_parameter(name).detach() - start[name]
            total[name] = total.get(name, 0) + omega.clamp(min=0) / (moved**2 + si.damping)
        si.consolidate()
    for name, omega in total.items():
        torch.testing.assert_close(si.importance[name], omega)
    with torch.no_grad():
        model[0].weight.add_(0.1)
    assert si.penalty() > 1e-3


def test_the_loss_form_is_the_gradient_form():
    first, second = network(), None
    second = copy.deepcopy(first)
    memories = []
    for model, form in ((first, "gradient"), (second, "loss")):
        si = retain.SI(model, strength=5.0)
        memories.append(si)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for task in range(2):
                optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
                with si.attach(optimizer, form=form):
                    learned(si, optimizer, batches(10, seed=task), in_loss=form == "loss")
                si.consolidate()
    for name in memories[0].importance:
        torch.testing.assert_close(memories[0].importance[name], memories[1].importance[name])
    for p, q in zip(first.parameters(), second.parameters()):
        torch.testing.assert_close(p, q)


def protected(strength=5.0):
    """A model and its SI after one task, away from the anchor."""
    model = network()
    si = retain.SI(model, strength=strength)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with si.attach(optimizer):
        learned(si, optimizer, batches(5))
    si.consolidate()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, si


def test_penalty_in_the_loss_with_accumulation_and_a_thrown_away_gradient():
    model, si = protected()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    (x, y), (x2, y2), (x3, y3) = batches(3, seed=9)
    si.attach(optimizer, form="loss")
    (cross_entropy(model(x), y) + si.penalty()).backward()
    optimizer.zero_grad()  # a bad batch: no step
    ((cross_entropy(model(x2), y2) + si.penalty()) / 2).backward()
    ((cross_entropy(model(x3), y3) + si.penalty()) / 2).backward()
    task = torch.autograd.grad(
        (cross_entropy(model(x2), y2) + cross_entropy(model(x3), y3)) / 2, list(model.parameters())
    )
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for (name, p), b, g in zip(model.named_parameters(), before, task):
        torch.testing.assert_close(walked(si)[name], -g * (p.detach() - b))


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler(form, fused):
    model, si = protected()
    model.float()
    si = retain.SI(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    si.attach(optimizer, form=form)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    by_hand = {}
    for step, (x, y) in enumerate(batches(4)):
        x = x.float()
        task = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(x), y)).backward()
        if step == 2:
            model[0].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        for (name, p), b, g in zip(model.named_parameters(), before, task):
            by_hand[name] = by_hand.get(name, 0) - g * (p.detach() - b)
    assert si.observed.samples == 3, "the skipped step counts"
    for name, omega in by_hand.items():
        torch.testing.assert_close(walked(si)[name], omega, rtol=1e-3, atol=1e-7)


def test_a_scaled_loss_with_the_penalty_in_it_is_refused():
    model, si = protected()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    si.attach(optimizer, form="loss")
    (x, y), *_ = batches(1)
    (65536 * (cross_entropy(model(x), y) + si.penalty())).backward()
    with pytest.raises(StateError, match=r'GradScaler.*form="gradient"'):
        optimizer.step()


def test_a_closure_is_followed_from_evaluation_to_evaluation():
    model = network()
    si = retain.SI(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=6)
    si.attach(optimizer)
    (x, y), *_ = batches(1)
    seen = []

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = cross_entropy(model(x), y)
        loss.backward()
        seen.append([(p.detach().clone(), p.grad.clone()) for p in model.parameters()])
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert len(seen) > 4
    seen.append([(p.detach().clone(), None) for p in model.parameters()])
    for i, (name, _) in enumerate(model.named_parameters()):
        expected = sum(-a[i][1] * (b[i][0] - a[i][0]) for a, b in pairwise(seen))
        torch.testing.assert_close(walked(si)[name], expected)
    assert si.observed.samples == 2


def test_an_optimizer_that_climbs():
    model, other = Quadratic(), Quadratic()
    sums = []
    for net, sign in ((model, 1), (other, -1)):
        si = retain.SI(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, maximize=sign < 0)
        si.attach(optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            (sign * net()).backward()
            optimizer.step()
        sums.append(walked(si)["theta"])
    torch.testing.assert_close(*sums)


def test_two_optimizers_are_followed_at_once():
    model = network()
    si = retain.SI(model)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2])]
    for optimizer in optimizers:
        si.attach(optimizer)
    (x, y), *_ = batches(1)
    cross_entropy(model(x), y).backward()
    for optimizer in optimizers:
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(walked(si)[name], 0.1 * p.grad**2)


def test_it_keeps_no_more_than_it_needs():
    """θ*, Ω and ω: where a task starts is θ*, and is not kept a second time."""
    model, si = protected()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(si.anchor[name])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with si.attach(optimizer):
        learned(si, optimizer, batches(2))
    starts = si.state_dict()["tensors"]["start"]
    assert starts.keys() == si.anchor.keys()
    for name, start in starts.items():
        assert start.data_ptr() == si.anchor[name].data_ptr()
    si.consolidate()
    assert not si.state_dict()["tensors"]["start"]


def test_a_later_head_starts_where_it_is():
    model = network()
    si = retain.SI(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with si.attach(optimizer):
        learned(si, optimizer, batches(2))
    si.consolidate()
    model.add_module("3", nn.Linear(3, 3).double())
    start = model.get_parameter("3.weight").detach().clone()
    optimizer, by_hand = torch.optim.SGD(model.parameters(), lr=0.1), {}
    with si.attach(optimizer, form="loss"):
        learned(si, optimizer, batches(2), by_hand=by_hand)
    si.consolidate()
    end = model.get_parameter("3.weight").detach()
    expected = by_hand["3.weight"].clamp(min=0) / ((end - start) ** 2 + si.damping)
    torch.testing.assert_close(si.importance["3.weight"], expected)
    assert torch.equal(si.anchor["3.weight"], end)
    assert expected.max() > 1e-3


def test_saved_in_the_middle_of_a_task_and_continued(tmp_path):
    torch.manual_seed(5)
    models = [network()]
    models.append(copy.deepcopy(models[0]))
    results = []
    for stop, model in zip((False, True), models):
        si = retain.SI(model, damping=0.2, strength=2.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        handle = si.attach(optimizer)
        learned(si, optimizer, batches(3, seed=1))
        si.consolidate()
        learned(si, optimizer, batches(3, seed=2))
        if stop:
            si.save(tmp_path / "si.safetensors")
            handle.remove()
            si = retain.load(tmp_path / "si.safetensors", model)
            assert si.observed.samples == 3
            si.attach(optimizer)
        learned(si, optimizer, batches(3, seed=3))
        results.append(si.consolidate())
    assert results[1].damping == 0.2
    for name, omega in results[0].importance.items():
        assert torch.equal(results[1].importance[name], omega)
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters()))


def test_wrong_calls():
    model = network()
    si = retain.SI(model)
    with pytest.raises(StateError, match="does not observe data"):
        si.observe(torch.randn(3, 5))
    with pytest.raises(StateError, match="not from importance given to it"):
        si.observed = retain.Importance({"0.bias": torch.ones(6)}, 1)
    with pytest.raises(StateError, match="followed no step"):
        si.consolidate()
    with pytest.warns(UserWarning, match="Nothing is protected yet"):
        assert si.penalty() == 0
    for damping in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="damping="):
            retain.SI(model, damping=damping)
    with pytest.raises(InputError, match=r"expected 'gradient' or 'proximal' or 'adaptive'\.$"):
        retain.MAS(model).attach(torch.optim.SGD(model.parameters(), lr=1), form="loss")


def test_the_first_task_is_learned_without_a_warning_or_an_error():
    model = network()
    si = retain.SI(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        si.attach(optimizer)
        learned(si, optimizer, batches(3))


def test_a_diverged_training_is_not_consolidated():
    model = network()
    si = retain.SI(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    si.attach(optimizer)
    (x, y), *_ = batches(1)
    cross_entropy(model(x * torch.nan), y).backward()
    optimizer.step()
    with pytest.raises(retain.RetainError, match="Did training diverge"):
        si.consolidate()
