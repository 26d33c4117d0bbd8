"""Optimizers whose steps are protected: what a step does, and what it leaves alone."""

from __future__ import annotations

import copy
import gc
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import retain
from retain.errors import InputError, ModelError, StateError
from retain.memory import attachment, step_size
from retain.penalty import hold, many, parts

STRENGTH = 3.0
FORMS = ("gradient", "proximal", "adaptive")


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


def consolidated(model, strength=STRENGTH, **options):
    """A memory of `model`, whose weights then leave their anchor."""
    memory = retain.MAS(model, strength=strength, **options)
    memory.observe(torch.randn(20, 5, dtype=next(model.parameters()).dtype)).consolidate()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return memory


def twins(**options):
    """A protected model, and a copy with a memory of its own for the loss form."""
    model = network()
    memory = consolidated(model, **options)
    other = copy.deepcopy(model)
    theirs = retain.MAS(other, **{"strength": STRENGTH, **options})
    theirs.load_state_dict(memory.state_dict())
    return model, memory, other, theirs


def penalty_by_hand(memory, model):
    """λ Σ Ω (θ − θ*)², as it is written."""
    omega, anchor = memory.importance, memory.anchor
    return memory.strength * sum(
        (omega[n] * (p - anchor[n]) ** 2).sum() for n, p in model.named_parameters() if n in omega
    )


def assert_same(model, other, **tolerance):
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, nesterov=True),
    "decay": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
    "adam, fused": lambda ps: torch.optim.Adam(ps, lr=0.01, fused=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_gradient_form_is_the_penalty_in_the_loss(make):
    model, memory, other, theirs = twins()
    ours, reference = make(model.parameters()), make(other.parameters())
    memory.attach(ours)
    for x, y in batches(5):
        ours.zero_grad()
        cross_entropy(model(x), y).backward()
        ours.step()
        reference.zero_grad()
        (cross_entropy(other(x), y) + theirs.penalty()).backward()
        reference.step()
    assert_same(model, other)


def test_the_penalty_in_the_loss_is_the_formula():
    model = network()
    memory = consolidated(model)
    by_hand = penalty_by_hand(memory, model)
    torch.testing.assert_close(memory.penalty(), by_hand)
    expected = torch.autograd.grad(by_hand, list(model.parameters()))
    got = torch.autograd.grad(memory.penalty(), list(model.parameters()))
    torch.testing.assert_close(got, expected)
    assert all(g.abs().max() > 1e-3 for g in got)


def step_by_hand(model, form, *memories, rate=0.1):
    """A step of plain SGD with the gradients that are there, held as `form` says."""
    # 2λΩ, and 2λΩθ*, summed over the memories
    pull = {name: 0.0 for name, _ in model.named_parameters()}
    home = dict(pull)
    for memory in memories:
        for name, omega in memory.importance.items():
            pull[name] = pull[name] + 2 * memory.strength * omega
            home[name] = home[name] + 2 * memory.strength * omega * memory.anchor[name]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if form == "gradient":
                p -= rate * (p.grad + pull[name] * p - home[name])
            else:
                p -= rate * p.grad
                p.copy_((p + rate * home[name]) / (1 + rate * pull[name]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clip", [None, 0.01])
def test_once_per_step_whatever_the_accumulation_and_only_the_task_is_clipped(clip, form):
    model, memory, other, _ = twins()
    ours = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(ours, form=form)
    for net in (model, other):
        for x, y in batches(4):
            (cross_entropy(net(x), y) / 4).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
    ours.step()
    step_by_hand(other, form, memory)
    assert_same(model, other)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_users_own_again_after_the_step(form):
    model = network()
    memory = consolidated(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer, form=form)
    (x, y), *_ = batches(1)
    cross_entropy(model(x), y).backward()
    tensors = [p.grad for p in model.parameters()]
    values = [g.clone() for g in tensors]
    for _ in range(2):
        optimizer.step()
        assert all(p.grad is g for p, g in zip(model.parameters(), tensors))
        assert all(torch.equal(p.grad, v) for p, v in zip(model.parameters(), values))


@pytest.mark.parametrize(("form", "times"), [("proximal", 1), ("adaptive", 10)])
def test_the_following_forms_are_the_closed_form_with_the_rate_of_each_group(form, times):
    """Momentum of 0.9 makes ten times of a gradient that lasts."""
    model = network()
    memory = consolidated(model)
    plain = copy.deepcopy(model)

    def groups(net):
        return [
            {"params": net[0].parameters(), "lr": 0.5},
            {"params": net[2].parameters(), "lr": 0.02},
        ]

    ours = torch.optim.SGD(groups(model), lr=1.0, momentum=0.9)
    theirs = torch.optim.SGD(groups(plain), lr=1.0, momentum=0.9)
    memory.attach(ours, form=form)
    omega, anchor = memory.importance, memory.anchor
    for x, y in batches(3):
        for net, optimizer in ((model, ours), (plain, theirs)):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            for name, p in plain.named_parameters():
                pull = 2 * times * (0.5 if name[0] == "0" else 0.02) * STRENGTH * omega[name]
                p.copy_((p + pull * anchor[name]) / (1 + pull))
        assert_same(model, plain)


def test_gradient_form_with_several_groups():
    model, memory, other, theirs = twins()

    def make(net):
        return torch.optim.Adam(
            [
                {"params": net[0].parameters(), "lr": 0.5},
                {"params": net[2].parameters(), "weight_decay": 0.1},
            ],
            lr=0.02,
        )

    ours, reference = make(model), make(other)
    memory.attach(ours)
    for x, y in batches(3):
        ours.zero_grad()
        cross_entropy(model(x), y).backward()
        ours.step()
        reference.zero_grad()
        (cross_entropy(other(x), y) + theirs.penalty()).backward()
        reference.step()
    assert_same(model, other)


@pytest.mark.parametrize("following", ["proximal", "adaptive"])
def test_for_small_steps_the_forms_are_one(following):
    apart = []
    for rate in (1e-2, 1e-3, 1e-4):
        torch.manual_seed(0)
        model, memory, other, theirs = twins()
        start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        for net, mem, form in ((model, memory, "gradient"), (other, theirs, following)):
            optimizer = torch.optim.SGD(net.parameters(), lr=rate)
            with mem.attach(optimizer, form=form):
                for x, y in batches(3):
                    optimizer.zero_grad()
                    cross_entropy(net(x), y).backward()
                    optimizer.step()
        a, b = (
            torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (model, other)
        )
        apart.append(((a - b).norm() / (a - start).norm()).item())
    assert apart[0] > 0
    assert apart[1] < 0.2 * apart[0]
    assert apart[2] < 0.2 * apart[1]


@pytest.mark.parametrize("form", ["proximal", "adaptive"])
def test_the_following_forms_are_stable_where_the_gradient_form_is_not(form):
    model = network()
    memory = consolidated(model, strength=1e6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    anchor = memory.anchor
    with memory.attach(optimizer, form=form):
        for x, y in batches(20):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), anchor[name], atol=1e-4, rtol=0)


# ---- GradScaler ----


def scaled_step(model, optimizer, scaler, x, y, *, spoil=False):
    optimizer.zero_grad()
    scaler.scale(cross_entropy(model(x), y)).backward()
    if spoil:
        next(model.parameters()).grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [OPTIMIZERS["adam"], OPTIMIZERS["adam, fused"]])
def test_a_grad_scaler_changes_nothing(make, form):
    model = network().float()
    memory = consolidated(model)
    other = copy.deepcopy(model)
    theirs = retain.MAS(other, strength=STRENGTH)
    theirs.load_state_dict(memory.state_dict())
    ours, plain = make(model.parameters()), make(other.parameters())
    memory.attach(ours, form=form)
    theirs.attach(plain, form=form)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x, y in batches(4):
        scaled_step(model, ours, scaler, x.float(), y)
        plain.zero_grad()
        cross_entropy(other(x.float()), y).backward()
        plain.step()
    assert_same(model, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [OPTIMIZERS["sgd"], OPTIMIZERS["adam, fused"]])
def test_a_step_that_the_scaler_skips_moves_nothing(make, form):
    model = network().float()
    memory = consolidated(model)
    optimizer = make(model.parameters())
    memory.attach(optimizer, form=form)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = copy.deepcopy(model)
    (x, y), (x2, y2) = batches(2)
    scaled_step(model, optimizer, scaler, x.float(), y, spoil=True)
    assert_same(model, before, atol=0, rtol=0)
    scaled_step(model, optimizer, scaler, x2.float(), y2)
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters()))
    assert all(torch.isfinite(p).all() for p in model.parameters())


# ---- closures ----


@pytest.mark.parametrize(
    "make",
    [
        OPTIMIZERS["sgd"],
        lambda ps: torch.optim.LBFGS(ps, lr=0.5, max_iter=5),
        lambda ps: torch.optim.LBFGS(ps, max_iter=8, line_search_fn="strong_wolfe"),
    ],
    ids=["sgd", "lbfgs", "lbfgs with line search"],
)
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("keyword", [True, False])
def test_a_closure_sees_the_penalty_each_time(make, to_none, keyword):
    model, memory, other, theirs = twins()
    ours, reference = make(model.parameters()), make(other.parameters())
    memory.attach(ours)
    (x, y), *_ = batches(1)
    task = []

    def closure():
        ours.zero_grad(set_to_none=to_none)
        loss = cross_entropy(model(x), y)
        loss.backward()
        task[:] = [p.grad.clone() for p in model.parameters()]
        return loss

    def penalised():
        reference.zero_grad()
        loss = cross_entropy(other(x), y) + theirs.penalty()
        loss.backward()
        return loss

    for _ in range(3):
        loss = ours.step(closure=closure) if keyword else ours.step(closure)
        expected = reference.step(penalised)
        torch.testing.assert_close(torch.as_tensor(loss), torch.as_tensor(expected))
    assert_same(model, other)
    # what is left is the task's gradient alone, as the last call of the closure made it
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), task))


@pytest.mark.parametrize("number", [2.5, 2])
def test_the_penalty_is_in_a_loss_that_is_a_number(number):
    model = network()
    memory = consolidated(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer)
    penalty = float(penalty_by_hand(memory, model).detach())

    def closure():
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        return number

    assert penalty > 1e-3
    assert optimizer.step(closure) == pytest.approx(number + penalty)


@pytest.mark.parametrize("form", FORMS)
def test_an_optimizer_that_climbs(form):
    model, memory, other, _ = twins()
    ours = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    memory.attach(ours, form=form)
    (x, y), *_ = batches(1)
    (-cross_entropy(model(x), y)).backward()
    ours.step()
    cross_entropy(other(x), y).backward()
    step_by_hand(other, form, memory)
    assert_same(model, other)


@pytest.mark.parametrize("form", ["proximal", "adaptive"])
def test_a_closure_is_followed_by_one_pull(form):
    model, memory, other, _ = twins()
    ours = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(ours, form=form)
    for x, y in batches(2):

        def closure(x=x, y=y):
            ours.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        loss = ours.step(closure)
        other.zero_grad()
        task = cross_entropy(other(x), y)
        task.backward()
        torch.testing.assert_close(loss, task)
        step_by_hand(other, form, memory)
    assert_same(model, other)


# ---- which weights ----


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_without_gradient_is_pulled_back_if_it_is_away(form):
    model = network()
    memory = consolidated(model)
    anchor = memory.anchor
    with torch.no_grad():
        model[2].weight.copy_(anchor["2.weight"])  # at home; 2.bias stays away
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    memory.attach(optimizer, form=form)
    model[0](batches(1)[0][0]).sum().backward()
    assert model[2].bias.grad is None
    optimizer.step()
    assert model[2].weight.grad is None
    assert model[2].bias.grad is None
    assert torch.equal(model[2].weight, before["2.weight"]), "decayed, though nothing moved it"
    way = (model[2].bias - anchor["2.bias"]).abs()
    assert (way < (before["2.bias"] - anchor["2.bias"]).abs()).all()


@pytest.mark.parametrize("form", FORMS)
def test_frozen_weights_stay(form):
    model = network()
    memory = consolidated(model)
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0].state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer, form=form)
    for x, y in batches(2):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in model[0].named_parameters())


@pytest.mark.parametrize("form", FORMS)
def test_what_was_added_later_is_free(form):
    model = nn.ModuleDict({"body": nn.Linear(5, 6), "first": nn.Linear(6, 3)}).double()
    model.forward = lambda x: model["first"](model["body"](x).tanh())
    memory = retain.MAS(model, strength=1e9)
    memory.observe(torch.randn(10, 5).double()).consolidate()
    model["second"] = nn.Linear(6, 4).double()
    model.forward = lambda x: model["second"](model["body"](x).tanh())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12 if form == "gradient" else 0.1)
    if form == "gradient":
        optimizer.add_param_group({"params": [], "lr": 0.1})
        second = {id(p) for p in model["second"].parameters()}
        params = optimizer.param_groups[0]["params"]
        optimizer.param_groups[1]["params"] = [p for p in params if id(p) in second]
        optimizer.param_groups[0]["params"] = [p for p in params if id(p) not in second]
    memory.attach(optimizer, form=form)
    for x, y in batches(3):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model["second"].weight - before["second.weight"]).abs().max() > 1e-3
    assert (model["body"].weight - before["body.weight"]).abs().max() < 1e-6
    assert memory.penalty() < 1e-3


def test_a_changed_shape_is_an_error_that_lists_it_unless_excluded():
    model = network()
    memory = consolidated(model)
    model[2] = nn.Linear(6, 4).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for act in (memory.penalty, lambda: memory.attach(optimizer)):
        with pytest.raises(ModelError, match=r"2\.weight was \(3, 6\) and is \(4, 6\)") as caught:
            act()
        assert "2.bias was (3,) and is (4,)" in str(caught.value)
        assert "0.weight" not in str(caught.value)
    memory.exclude = "2"
    assert memory.penalty() > 0
    memory.attach(optimizer)
    cross_entropy(model(torch.randn(4, 5).double()), torch.tensor([0, 1, 2, 3])).backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in model.named_parameters()}
    for name in ("0.weight", "0.bias"):
        way = model.get_parameter(name).detach() - memory.anchor[name]
        expected[name] -= 0.1 * 2 * STRENGTH * memory.importance[name] * way
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])


def test_a_shape_that_changes_while_attached_stops_the_step():
    model = network()
    memory = consolidated(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer)
    model[2].bias.data = torch.zeros(4).double()
    before = model[0].weight.clone()
    with pytest.raises(ModelError, match=r"2\.bias was \(3,\) and is \(4,\)"):
        optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_sparse_gradients_are_refused_in_one_form_and_held_in_the_other():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2))
    memory = retain.MAS(model, strength=5.0, check=False)
    tokens = torch.randint(0, 10, (6, 3))
    memory.observe([tokens]).consolidate()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(tokens).sum().backward()
    with (
        memory.attach(optimizer),
        pytest.raises(InputError, match=r'Sparse gradients of 0\.weight.*form="proximal"'),
    ):
        optimizer.step()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    omega, star = memory.importance["0.weight"], memory.anchor["0.weight"]
    moved = (
        model[0]
        .weight.detach()
        .clone()
        .index_add_(
            0, model[0].weight.grad._indices()[0], model[0].weight.grad._values(), alpha=-0.1
        )
    )
    pull = 2 * 0.1 * 5.0 * omega
    with memory.attach(optimizer, form="proximal"):
        optimizer.step()
    assert omega.max() > 0.1
    torch.testing.assert_close(model[0].weight.detach(), (moved + pull * star) / (1 + pull))


# ---- the handle ----


@pytest.mark.parametrize("form", FORMS)
def test_a_removed_handle_leaves_an_ordinary_optimizer(form):
    model = network()
    memory = consolidated(model)
    other = copy.deepcopy(model)
    ours = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1)
    handle = memory.attach(ours, form=form)
    handle.remove()
    handle.remove()
    with pytest.raises(KeyError), memory.attach(ours, form=form):
        raise KeyError
    for x, y in batches(2):
        for net, optimizer in ((model, ours), (other, theirs)):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
    assert_same(model, other, atol=0, rtol=0)
    memory.attach(ours, form=form)  # and can be attached anew


def test_attached_twice_is_refused():
    model = network()
    memory = consolidated(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer)
    with pytest.raises(StateError, match="attached already"):
        memory.attach(optimizer, form="proximal")
    memory.attach(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("before", [True, False])
def test_an_optimizer_without_protected_parameters_is_refused(before):
    model = network()
    memory = retain.MAS(model, include="0")
    if not before:
        memory.observe(torch.randn(3, 5).double()).consolidate()
    for stranger in (network(), model[2]):
        with pytest.raises(InputError, match="none of the protected parameters"):
            memory.attach(torch.optim.SGD(stranger.parameters(), lr=0.1))


def test_what_cannot_be_attached():
    memory = consolidated(network())
    optimizer = torch.optim.SGD(memory.model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="StepLR; expected a torch optimizer"):
        memory.attach(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    with pytest.raises(InputError, match=r"'gradient' or 'proximal' or 'adaptive'\.$"):
        memory.attach(optimizer, form="gradients")
    del optimizer.param_groups[0]["lr"]
    for form in ("proximal", "adaptive"):
        with pytest.raises(InputError, match=r'learning rate as group\["lr"\], .*lacks'):
            memory.attach(optimizer, form=form)


def test_a_step_with_unconsolidated_observations_is_refused_before_it_moves():
    model = network()
    memory = retain.MAS(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer)
    memory.observe(torch.randn(7, 5).double())
    before = copy.deepcopy(model)
    (x, y), *_ = batches(1)
    cross_entropy(model(x), y).backward()
    with pytest.raises(StateError, match=r"7 samples were observed and never consolidated"):
        optimizer.step()
    assert_same(model, before, atol=0, rtol=0)
    memory.consolidate()
    optimizer.step()


def test_before_anything_was_observed_steps_are_plain_and_one_warning_says_so():
    model = network()
    memory = retain.MAS(model)
    other = copy.deepcopy(model)
    ours = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1)
    memory.attach(ours)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x, y in batches(3):
            for net, optimizer in ((model, ours), (other, theirs)):
                optimizer.zero_grad()
                cross_entropy(net(x), y).backward()
                optimizer.step()
    assert_same(model, other, atol=0, rtol=0)
    assert [str(w.message) for w in caught if "Nothing is protected yet" in str(w.message)]
    assert len(caught) == 1


@pytest.mark.parametrize("form", FORMS)
def test_an_attachment_lives_through_consolidation_and_a_new_strength(form):
    model = network()
    memory = retain.MAS(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer, form=form)
    memory.observe(torch.randn(7, 5).double()).consolidate()
    with torch.no_grad():
        model[0].bias.add_(1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    start = copy.deepcopy(model)
    for strength in (0.0, 1.0, 2.0):
        memory.strength = strength
        with torch.no_grad():
            model[0].bias.copy_(start[0].bias)
        other = copy.deepcopy(model)
        for p in other.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        step_by_hand(other, form, memory)
        assert_same(model, other)
        assert torch.equal(model[0].bias, start[0].bias) == (strength == 0)


@pytest.mark.parametrize("form", FORMS)
def test_two_memories_hold_one_optimizer(form):
    model = network()
    first = consolidated(model)
    second = consolidated(model, strength=2.0)
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first.attach(optimizer, form=form)
    second.attach(optimizer, form=form)
    (x, y), *_ = batches(1)
    cross_entropy(model(x), y).backward()
    own = [p.grad for p in model.parameters()]
    optimizer.step()
    assert all(p.grad is g for p, g in zip(model.parameters(), own))
    cross_entropy(other(x), y).backward()
    if form == "gradient":
        step_by_hand(other, form, first, second)
    else:  # one minimiser after the other
        step_by_hand(other, form, first)
        for p in other.parameters():
            p.grad.zero_()
        step_by_hand(other, form, second)
    assert_same(model, other)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_breaks_off_does_not_count_twice(form):
    class Breaks(torch.optim.SGD):
        broken = True

        def step(self, closure=None):
            if self.broken:
                raise OSError("cable pulled")
            return super().step(closure)

    model, memory, other, _ = twins()
    optimizer = Breaks(model.parameters(), lr=0.1)
    memory.attach(optimizer, form=form)
    (x, y), *_ = batches(1)
    cross_entropy(model(x), y).backward()
    with pytest.raises(OSError, match="cable"):
        optimizer.step()
    optimizer.broken = False
    optimizer.step()
    cross_entropy(other(x), y).backward()
    step_by_hand(other, form, memory)
    assert_same(model, other)


def test_the_penalty_in_the_loss_as_well_is_warned_about():
    model = network()
    memory = consolidated(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with memory.attach(optimizer), pytest.warns(UserWarning, match="counts twice"):
        memory.penalty().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.penalty().backward()


def test_schedulers_and_checkpoints_of_the_optimizer_work_as_ever():
    model = network()
    memory = consolidated(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    memory.attach(optimizer, form="proximal")
    for x, y in batches(2):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    again = torch.optim.Adam(model.parameters(), lr=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.param_groups[0]["lr"] == 0.025


# ---- steps that move nothing ----


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_making_the_state_for_a_checkpoint_leaves_no_trace(make, form):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = network().float()
    memory = consolidated(model)
    optimizer = make(model.parameters())
    memory.attach(optimizer, form=form)
    before = copy.deepcopy(model)
    free = make(before.parameters())
    got, expected = (
        get_optimizer_state_dict(m, o) for m, o in ((model, optimizer), (before, free))
    )
    assert_same(model, before, atol=0, rtol=0)
    torch.testing.assert_close(got["state"], expected["state"], atol=0, rtol=0)


def test_a_warm_up_from_a_rate_of_zero_is_the_penalty_in_the_loss():
    model, memory, other, theirs = twins()
    ours, reference = (torch.optim.Adam(net.parameters(), lr=0.01) for net in (model, other))
    memory.attach(ours)
    for step, (x, y) in enumerate(batches(4)):
        for optimizer in (ours, reference):
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = 0.01 * step
        cross_entropy(model(x), y).backward()
        ours.step()
        (cross_entropy(other(x), y) + theirs.penalty()).backward()
        reference.step()
    assert_same(model, other)


# ---- what a step costs ----


class NoWaiting(TorchDispatchMode):
    """Fails where the host asks for a number that an accelerator computes."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in {
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
        }, "the host waits for an accelerator"
        return func(*args, **(kwargs or {}))


def calls_in(act):
    """How often Python called something, of its own or built in."""
    seen = [0]

    def count(_frame, event, _arg):
        seen[0] += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(before)
    return seen[0]


@pytest.mark.parametrize("form", FORMS)
def test_what_a_step_costs_follows_what_it_steps(form):
    """One optimizer for each parameter: what one of them costs is the same in a larger model."""

    def attached(layers):
        model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
        memory = retain.MAS(model, strength=0.1, check=False)
        omega = {name: torch.rand_like(p) for name, p in model.named_parameters()}
        memory.observed = retain.Importance(omega, 1)
        memory.consolidate()
        optimizers = [torch.optim.SGD([p], lr=0.1) for p in model.parameters()]
        memory.attach(optimizers, form=form)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        for optimizer in optimizers:
            optimizer.step()
        gc.collect()  # a memory that is left hears of all optimizers
        return model, memory, optimizers

    def cost(layers):
        _model, _memory, optimizers = attached(layers)
        return min(calls_in(optimizers[3].step) for _ in range(3))

    small = cost(10)
    assert cost(60) <= small + 5
    model, memory, optimizers = attached(10)
    memory.exclude = "0"
    weight = model[0].weight.detach().clone()
    optimizers[0].step()
    torch.testing.assert_close(model[0].weight.detach(), weight - 0.1)


@pytest.fixture
def accelerated(monkeypatch):
    """All tensors count as if they were on an accelerator."""
    for module in (hold, parts, many, attachment, step_size):
        monkeypatch.setattr(module, "is_accelerated", lambda _tensor: True)


@pytest.fixture
def unwaited(accelerated, monkeypatch):
    """The host waits for no accelerator in what is attached; the optimizer's own step may."""
    for name in ("_before", "_after"):
        plain = getattr(attachment.Attachment, name)

        def watched(self, *args, plain=plain):
            with NoWaiting():
                return plain(self, *args)

        monkeypatch.setattr(attachment.Attachment, name, watched)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rate", [0.01, torch.tensor(0.01)], ids=["float", "tensor"])
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_a_step_does_not_wait_for_an_accelerator(make, rate, form, unwaited, monkeypatch):
    model = network().float()
    memory = consolidated(model)
    other, plain = copy.deepcopy(model), None
    theirs = retain.MAS(other)
    theirs.load_state_dict(memory.state_dict())
    optimizer = make(model.parameters(), lr=rate)
    memory.attach(optimizer, form=form)
    for x, y in batches(3):
        optimizer.zero_grad()
        cross_entropy(model(x.float()), y).backward()
        optimizer.step()
    monkeypatch.undo()
    plain = make(other.parameters(), lr=0.01)
    theirs.attach(plain, form=form)
    for x, y in batches(3):
        plain.zero_grad()
        cross_entropy(other(x.float()), y).backward()
        plain.step()
    assert_same(model, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("found", [0.0, 1.0])
def test_what_a_scaler_found_is_not_waited_for(form, found, unwaited, monkeypatch):
    model = network().float()
    memory = consolidated(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    memory.attach(optimizer, form=form)
    before = copy.deepcopy(model)
    (x, y), *_ = batches(1)
    (8 * cross_entropy(model(x.float()), y)).backward()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found)
    optimizer.step()
    if found:
        assert_same(model, before, atol=0, rtol=0)
        return
    monkeypatch.undo()
    theirs = retain.MAS(before)
    theirs.load_state_dict(memory.state_dict())
    plain = torch.optim.AdamW(before.parameters(), lr=0.01)
    theirs.attach(plain, form=form)
    cross_entropy(before(x.float()), y).backward()
    plain.step()
    assert_same(model, before, atol=1e-6, rtol=1e-5)


def test_a_weight_without_gradient_is_looked_at_once(accelerated, monkeypatch):
    """To see whether it is away from its anchor means to wait; not at every step."""
    looks = []
    any_of = Tensor.any
    model = network().float()
    memory = consolidated(model)
    monkeypatch.setattr(Tensor, "any", lambda self: looks.append(1) or any_of(self))
    with torch.no_grad():
        model[2].weight.copy_(memory.anchor["2.weight"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    memory.attach(optimizer)
    home, away = model[2].weight.detach().clone(), model[2].bias.detach().clone()
    for _ in range(3):
        model[0].weight.grad = torch.ones_like(model[0].weight)
        optimizer.step()
    assert len(looks) == 3, "0.bias, 2.weight and 2.bias, once"
    assert torch.equal(model[2].weight, home)
    assert not torch.equal(model[2].bias, away)
    with torch.no_grad():
        model[2].weight.add_(1.0)
    optimizer.step()
    assert len(looks) == 4, "it was moved"
    assert not torch.equal(model[2].weight, home + 1)
