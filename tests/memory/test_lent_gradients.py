"""Gradients that stand in for the user's own are given back, whatever happens in a step."""

from __future__ import annotations

import _weakrefset
import copy
import gc
import random
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import retain
from retain.memory import attachment, lent_gradients


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def consolidated(model, strength=3.0):
    memory = retain.MAS(model, strength=strength)
    memory.observe(torch.randn(20, 4)).consolidate()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return memory


def with_gradients(model):
    model.zero_grad()
    cross_entropy(model(torch.randn(8, 4)), torch.randint(0, 3, (8,))).backward()
    return [p.grad for p in model.parameters()], [p.grad.clone() for p in model.parameters()]


def own_again(model, gradients):
    tensors, values = gradients
    return all(
        p.grad is g and torch.equal(g, v)
        for p, g, v in zip(model.parameters(), tensors, values, strict=True)
    )


class Interrupt:
    """Calls something, and raises KeyboardInterrupt at one of the lines or instructions in it."""

    def __init__(self, act, at, opcodes):
        self.left, self.opcodes, self.raised = at, opcodes, False
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            act()
        except KeyboardInterrupt:
            self.raised = True
        finally:
            sys.settrace(before)
            torch.set_grad_enabled(True)  # interrupted on its way out, torch.no_grad stays

    def trace(self, frame, event, _arg):
        if frame.f_code.co_filename in LEFT_ALONE:
            return None
        frame.f_trace_opcodes = self.opcodes and frame.f_code.co_filename in OURS
        if event in ("line", "opcode"):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


# Not in the callbacks of weak references: Python ignores what is raised there, and a trace that
# raises there leaves CPython 3.11 with a broken stack, which crashes some lines later.
LEFT_ALONE = {__file__, weakref.__file__, _weakrefset.__file__}
OURS = {attachment.__file__, lent_gradients.__file__}
MAKERS = {
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=0.01),
    "one by one": lambda ps: torch.optim.SGD(ps, lr=0.1, foreach=False),
}


def steps_in(act, opcodes):
    return 10**9 - Interrupt(act, 10**9, opcodes).left


@pytest.mark.parametrize("opcodes", [False, True], ids=["lines", "instructions"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("memories", [1, 2])
def test_ctrl_c_anywhere_in_a_step_leaves_the_users_own_gradients(make, memories, opcodes):
    model = network()
    held = [consolidated(model) for _ in range(memories)]
    optimizer = make(model.parameters())
    for memory in held:
        memory.attach(optimizer)
    gradients = with_gradients(model)
    optimizer.step()
    length = steps_in(optimizer.step, opcodes)
    chosen, times = random.Random(0).sample(range(1, length + 1), min(length, 100)), 0
    for at in chosen:
        times += Interrupt(optimizer.step, at, opcodes).raised
        assert own_again(model, gradients), f"at {at} of {length}"
    assert times > len(chosen) // 2  # steps are not all of one length: what is kept is made anew
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert own_again(model, gradients)
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_between_two_attachments_nothing_is_lost():
    """The second was about to stand in for the first."""
    model = network()
    held = [consolidated(model) for _ in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for memory in held:
        memory.attach(optimizer)
    gradients = with_gradients(model)

    class Breaks(dict):
        writes = 0

        def __setitem__(self, key, lent):
            super().__setitem__(key, lent)
            self.writes += 1
            if self.writes == 6:  # 4 parameters, and the second of the second memory
                raise KeyboardInterrupt

    lent_gradients.ledger_of(optimizer).lent = Breaks()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert own_again(model, gradients)


def test_ctrl_c_in_a_closure_leaves_the_users_own_gradients():
    model = network()
    memory = consolidated(model)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    seen, parameters = [None] * 4, list(model.parameters())

    def closure():
        loss = cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            seen[i] = p.grad = g
        return loss

    def attached():
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
        memory.attach(optimizer)
        return lambda: optimizer.step(closure)

    length, times = steps_in(attached(), opcodes=False), 0
    for at in random.Random(0).sample(range(1, length), 60):
        for p in model.parameters():
            p.grad = None
        seen[:] = [None] * 4
        times += Interrupt(attached(), at, opcodes=False).raised
        assert all(p.grad is g for p, g in zip(model.parameters(), seen, strict=True))
    assert times > 30  # nearer to the minimum, a step is shorter


@pytest.mark.parametrize("scheduler", ["before", "after", "never"])
def test_a_step_that_fails_gives_back_and_removing_leaves_it_as_it_was(scheduler):
    class Fails(torch.optim.SGD):
        fails = True

        def step(self, closure=None):
            if self.fails:
                raise OSError("cable pulled")
            return super().step(closure)

    model = network()
    memory = consolidated(model)
    optimizer = Fails(model.parameters(), lr=0.1)
    if scheduler == "before":
        rates = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    untouched = vars(optimizer).get("step")
    handle = memory.attach(optimizer)
    if scheduler == "after":
        rates = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    gradients = with_gradients(model)
    with pytest.raises(OSError, match="cable"):
        optimizer.step()
    assert own_again(model, gradients)
    optimizer.fails = False
    optimizer.step()
    if scheduler != "never":
        rates.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    handle.remove()
    if scheduler != "after":  # whose own step is around it then
        assert vars(optimizer).get("step") is untouched
    with memory.attach(optimizer):
        optimizer.fails = True
        with pytest.raises(OSError, match="cable"):
            optimizer.step()
        assert own_again(model, gradients)


def test_a_copy_of_an_attached_optimizer_steps_itself():
    model = network()
    memory = consolidated(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory.attach(optimizer)
    twin = copy.deepcopy(optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    for group in twin.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    twin.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all((p.grad == 1).all() for group in twin.param_groups for p in group["params"])


def test_an_attached_optimizer_that_is_done_with_is_not_kept():
    model = network()
    memory = consolidated(model)
    for make in MAKERS.values():
        optimizer = make(model.parameters())
        memory.attach(optimizer)
        with_gradients(model)
        optimizer.step()
        gone = weakref.ref(optimizer)
        del optimizer
        gc.collect()
        assert gone() is None
    assert not list(memory._attachments)
