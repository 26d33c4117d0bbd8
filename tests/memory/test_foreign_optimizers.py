"""Optimizers that are not torch's own: held exactly, or refused in one sentence."""

from __future__ import annotations

import copy
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import retain
from retain.errors import InputError

X, Y = torch.randn(8, 4), torch.randint(0, 3, (8,))


def remembered():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    memory = retain.MAS(model, strength=3.0).observe(X, progress=False).consolidate()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, memory


def trained(make, form, steps=3):
    """The weights after some steps, held in a form, or by the penalty in the loss."""
    model, memory = copy.deepcopy(START)
    memory.model = model
    optimizer = make(model.parameters())
    if form != "loss":
        memory.attach(optimizer, form=form)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(X), Y)
        (loss + memory.penalty() if form == "loss" else loss).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


START = remembered()


def assert_same(ours, theirs, **tolerance):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **tolerance)


class Slow(torch.optim.Optimizer):
    """As timm's Lookahead: an optimizer that steps another, and has no state of its own."""

    def __init__(self, params):
        self._fast = torch.optim.AdamW(params, lr=0.01)
        super().__init__(self._fast.param_groups, {})

    def step(self, closure=None):
        self._fast.step(closure)


class Both:
    """Several, under a name of its own."""

    def __init__(self, params):
        self.parts = [torch.optim.AdamW([p], lr=0.01) for p in params]

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()

    def step(self):
        for part in self.parts:
            part.step()


class CountedInGroups(torch.optim.Optimizer):
    """Adam as Apex has it: steps are counted for a group, and the means taken as they are."""

    corrected = True

    def __init__(self, params, lr=0.01):
        settings = MappingProxyType(
            {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "bias_correction": self.corrected}
        )
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = t = group.get("step", 0) + 1
            one, two = group["betas"]
            share = (1 - one**t, 1 - two**t) if self.corrected else (1.0, 1.0)
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                m = state["exp_avg"].lerp_(p.grad, 1 - one)
                v = state["exp_avg_sq"].lerp_(p.grad.square(), 1 - two)
                p -= group["lr"] * (m / share[0]) / ((v / share[1]).sqrt() + group["eps"])


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("make", [Slow, Both, CountedInGroups])
def test_steps_are_those_of_adam(make, form):
    plain = trained(lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.0), form)

    def without_decay(params):
        made = make(params)
        inner = getattr(made, "parts", [getattr(made, "_fast", made)])
        for group in (group for one in inner for group in one.param_groups):
            group["weight_decay"] = 0.0
        return made

    assert_same(trained(without_decay, form), plain, rtol=1e-4, atol=1e-6)


def test_means_that_are_taken_as_they_are():
    class Uncorrected(CountedInGroups):
        corrected = False

    model, memory = copy.deepcopy(START)
    optimizer = Uncorrected(model.parameters())
    with memory.attach(optimizer, form="adaptive"):
        cross_entropy(model(X), Y).backward()
        before, g = model[0].weight.detach().clone(), model[0].weight.grad.clone()
        optimizer.step()
    m, v = 0.1 * g, 0.001 * g.square()
    moved = before - 0.01 * m / (v.sqrt() + 1e-8)
    pull = 2 * 0.01 * 3.0 * memory.importance["0.weight"] / (v.sqrt() + 1e-8)
    expected = (moved + pull * memory.anchor["0.weight"]) / (1 + pull)
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-4, atol=1e-6)


class Packed(torch.Tensor):
    """Numbers in few bits, as torchao keeps means: nothing is computed with them directly."""

    block_size = 4

    @staticmethod
    def __new__(cls, plain):
        return torch.Tensor._make_wrapper_subclass(cls, plain.shape, dtype=plain.dtype)

    def __init__(self, plain):
        self.plain = plain

    def dequantize(self):
        return self.plain

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)


class InFewBits(CountedInGroups):
    def step(self, closure=None):
        for state in self.state.values():
            state["exp_avg_sq"] = state["exp_avg_sq"].dequantize()
        super().step(closure)
        for state in self.state.values():
            state["exp_avg_sq"] = Packed(state["exp_avg_sq"])


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
def test_means_in_few_bits(form):
    ours = trained(InFewBits, form)
    assert_same(ours, trained(CountedInGroups, form), rtol=1e-6, atol=1e-8)


class Plain(torch.optim.Optimizer):
    """θ ← θ − η g, with whatever settings and state it is said to have besides."""

    settings = MappingProxyType({})
    keeps = ()

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, **self.settings})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                for name in self.keeps:
                    self.state[p][name] = torch.zeros_like(p)
                p.sub_(p.grad, alpha=0.1)


class Estimating(Plain):
    settings = MappingProxyType({"d": 1e-6})


class AdamWScheduleFree(Plain):
    pass


class Trusting(Plain):
    settings = MappingProxyType({"trust_coefficient": 0.02, "clip": None})


class Optimizer8bit(Plain):
    pass


class AdamW8bit(Optimizer8bit):
    settings = MappingProxyType({"betas": (0.9, 0.999), "eps": 1e-8})


@pytest.mark.parametrize(
    ("make", "form", "said"),
    [
        (Estimating, "proximal", r'Estimating multiplies group\["lr"\] .* Use form="gradient"'),
        (Estimating, "adaptive", r'Estimating multiplies group\["lr"\]'),
        (AdamWScheduleFree, "proximal", "AdamWScheduleFree makes them in the next from what"),
        (Trusting, "adaptive", r"Trusting has settings of its own \(trust_coefficient\)\. Use"),
        (AdamW8bit, "adaptive", "AdamW8bit of bitsandbytes keeps its means packed"),
    ],
)
def test_what_is_refused_before_a_step(make, form, said):
    model, memory = copy.deepcopy(START)
    optimizer = make(model.parameters())
    with pytest.raises(InputError, match=said):
        memory.attach(optimizer, form=form)
    assert_same(trained(make, "gradient"), trained(make, "loss"))


def test_what_is_kept_besides_is_refused_when_it_is_seen():
    class Projecting(Plain):
        keeps = ("row_factor",)

    with pytest.raises(InputError, match=r"Projecting keeps more than is known here \(row_factor"):
        trained(Projecting, "adaptive")


@pytest.mark.parametrize("relative", [False, True])
def test_adafactor_of_transformers(relative):
    adafactor = pytest.importorskip("transformers").Adafactor

    def make(params):
        rate = {} if relative else {"lr": 0.01}
        return adafactor(params, relative_step=relative, scale_parameter=relative, **rate)

    assert_same(trained(make, "gradient"), trained(make, "loss"), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r'form="adaptive" needs .* Use form="gradient"'):
        trained(make, "adaptive")


def test_the_same_subclass_of_an_optimizer_steps_once():
    """Horovod makes such a class at run time; the hooks of torch then run twice in a step."""
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])  # from now on its own step has hooks

    class Distributed(torch.optim.AdamW):
        def step(self, closure=None):
            return super(self.__class__, self).step(closure)

    for form in ("gradient", "proximal", "adaptive"):
        assert_same(
            trained(lambda params: Distributed(params, lr=0.01), form),
            trained(lambda params: torch.optim.AdamW(params, lr=0.01), form),
        )


def test_averages_and_schedules_are_no_optimizers():
    model, memory = copy.deepcopy(START)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = torch.optim.swa_utils.AveragedModel(model)
    with pytest.raises(InputError, match="an AveragedModel, which is a model"):
        memory.attach(average)
    with pytest.raises(InputError, match="a SWALR"):
        memory.attach(torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.1))
