"""What `attach` takes: everything that holds a torch optimizer, once; and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain.errors import InputError, StateError


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def consolidated(model, strength=3.0, **options):
    memory = retain.MAS(model, strength=strength, **options)
    memory.observe(torch.randn(20, 4)).consolidate()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return memory


def pair():
    """A model and its memory, twice the same."""
    model = network()
    memory = consolidated(model)
    other = copy.deepcopy(model)
    theirs = retain.MAS(other)
    theirs.load_state_dict(memory.state_dict())
    return model, memory, other, theirs


X, Y = torch.randn(8, 4), torch.randint(0, 3, (8,))


def backward(model):
    model.zero_grad()
    loss = cross_entropy(model(X), Y)
    loss.backward()
    return loss


def assert_same(model, other):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


class Wrapper:
    """As DeepSpeed's and many a trainer's: no more than a step around an `.optimizer`."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


class Hidden(Wrapper):
    def __init__(self, optimizer):
        self._optimizer = optimizer

    def step(self):
        self._optimizer.step()


class Container(torch.optim.Optimizer):
    """As torchtitan's: an optimizer made of several."""

    def __init__(self, *optimizers):
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {})
        self.optimizers = list(optimizers)

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()


class SAM(torch.optim.Optimizer):
    """Steps of its own around those of a base optimizer."""

    def __init__(self, params, base, rho=0.05, **settings):
        super().__init__(params, dict(rho=rho, **settings))
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad, alpha=group["rho"])

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure):
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def one_each(model):
    return [torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()]


WRAPPED = {
    "wrapper": lambda model: Wrapper(sgd(model)),
    "twice": lambda model: Wrapper(Hidden(sgd(model))),
    "container": lambda model: Container(*one_each(model)),
    "wrapped container": lambda model: Wrapper(Container(*one_each(model))),
}


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_steps_of_a_wrapper_are_protected_as_those_of_what_it_wraps(make, form):
    model, memory, other, theirs = pair()
    wrapper, plain = make(model), sgd(other)
    handle = memory.attach(wrapper, form=form)
    theirs.attach(plain, form=form)
    for _ in range(3):
        backward(model)
        wrapper.step()
        backward(other)
        plain.step()
    assert_same(model, other)
    handle.remove()
    assert not handle.attached
    backward(model)
    before = copy.deepcopy(model)
    loose = sgd(before)
    for p, q in zip(before.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.clone()
    for optimizer in handle.optimizers:
        optimizer.state.clear()
    wrapper.step()
    loose.step()
    assert_same(model, before)


@pytest.mark.parametrize("several", [list, tuple, iter, lambda made: dict(enumerate(made))])
def test_several_optimizers_are_one_attachment(several):
    model, memory, other, theirs = pair()
    made, plain = one_each(model), sgd(other)
    handle = memory.attach(several(made))
    assert handle.optimizers == tuple(made)
    theirs.attach(plain)
    backward(model)
    for optimizer in made:
        optimizer.step()
    backward(other)
    plain.step()
    assert_same(model, other)


def test_optimizers_that_step_in_the_backward_pass():
    model, memory, other, theirs = pair()
    made = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def stepped(p):
        made[p].step()
        made[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(stepped)
    memory.attach(made)
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    theirs.attach(plain)
    for _ in range(3):
        cross_entropy(model(X), Y).backward()
        backward(other)
        plain.step()
    assert_same(model, other)


def test_a_wrapper_and_what_it_wraps_are_attached_once():
    model, memory, other, theirs = pair()
    inner = sgd(model)
    outer, plain = Wrapper(Hidden(inner)), sgd(other)
    theirs.attach(plain)
    handles = [memory.attach(one) for one in (inner, outer, [outer, inner])]
    for _ in range(3):
        backward(model)
        outer.step()
        backward(other)
        plain.step()
        if len(handles) > 1:
            handles.pop().remove()  # the others still protect
    assert_same(model, other)
    with pytest.raises(StateError, match='attached already, with form="gradient"'):
        memory.attach(outer, form="proximal")
    handles.pop().remove()
    memory.attach(outer, form="proximal")


def test_nothing_is_attached_if_one_of_several_cannot_be():
    model = network()
    memory = consolidated(model)
    good, bad = sgd(model[0]), torch.optim.Rprop(model[2].parameters())
    with pytest.raises(InputError, match="Rprop"):
        memory.attach([good, bad], form="adaptive")
    assert not good._optimizer_step_pre_hooks
    assert "step" not in vars(good)


def test_sam_is_protected_where_its_base_steps():
    model, memory, other, theirs = pair()
    ours = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    plain = SAM(other.parameters(), torch.optim.SGD, lr=0.1)
    memory.attach(ours)
    for step in range(4):
        backward(model)
        if step % 2:
            ours.step(lambda: backward(model))
        else:
            ours.first_step()
            backward(model)
            ours.second_step()
        backward(other)
        plain.first_step()
        backward(other)
        for group in plain.param_groups:
            for p in group["params"]:
                p.data = plain.state[p]["old"]
        with torch.no_grad():
            pull = torch.autograd.grad(torch.enable_grad()(theirs.penalty)(), [*other.parameters()])
        for p, g in zip(other.parameters(), pull, strict=True):
            p.grad += g
        plain.base_optimizer.step()
    assert_same(model, other)


# ---- the trainers' own wrappers ----


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("attach_to", ["wrapper", "inner", "both"])
def test_accelerate(form, attach_to):
    accelerate = pytest.importorskip("accelerate", reason="the extra for trainers is not installed")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, memory, other, theirs = pair()
    inner, plain = sgd(model), sgd(other)
    prepared, optimizer = accelerator.prepare(model, inner)
    for one in {"wrapper": [optimizer], "inner": [inner], "both": [inner, optimizer]}[attach_to]:
        memory.attach(one, form=form)
    theirs.attach(plain, form=form)
    before = copy.deepcopy(model)
    for step in range(4):
        with accelerator.accumulate(prepared):
            accelerator.backward(cross_entropy(prepared(X), Y))
            optimizer.step()
            optimizer.zero_grad()
        if step == 0:
            assert_same(model, before)  # a step that is skipped adds nothing
        if step % 2:
            backward(other)
            plain.step()
    assert_same(model, other)


def test_accelerate_with_a_scaler_that_skips():
    accelerate = pytest.importorskip("accelerate", reason="the extra for trainers is not installed")
    accelerate.Accelerator(cpu=True)
    model, memory, other, theirs = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    inner, plain = sgd(model), sgd(other)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(inner, scaler=scaler)
    handle = memory.attach(optimizer)
    theirs.attach(plain)
    before = copy.deepcopy(model)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(X), Y)).backward()
        if step == 0:
            model[0].bias.grad[0] = torch.inf
        optimizer.step()
        if step == 0:
            assert optimizer.step_was_skipped
            assert_same(model, before)
        else:
            backward(other)
            plain.step()
    assert_same(model, other)
    handle.remove()
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_lightning(form, manual, tmp_path):
    lightning = pytest.importorskip("lightning", reason="the extra for trainers is not installed")
    model, memory, other, theirs = pair()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization = model, not manual

        def on_train_start(self):
            memory.attach(self.optimizers(), form=form)
            memory.attach(self.optimizers().optimizer, form=form)

        def training_step(self, batch, _index):
            loss = cross_entropy(self.net(batch[0]), batch[1])
            if manual:
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

        def configure_optimizers(self):
            return sgd(self.net)

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(X, Y), batch_size=len(X)))
    plain = sgd(other)
    theirs.attach(plain, form=form)
    for _ in range(3):
        backward(other)
        plain.step()
    assert_same(model, other)


# ---- what is refused ----


def only_step():
    class Step:
        param_groups = ()

        def step(self):
            pass

    return Step()


def never_made():
    class Wrong(torch.optim.SGD):
        def __init__(self):
            pass

    return Wrong()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.optim.SGD, r"the class SGD; .*SGD\(model\.parameters\(\), …\)"),
        (nn.Linear(2, 2), "a Linear, which is a model"),
        ([nn.Parameter(torch.ones(2))], "a Parameter; expected a torch optimizer that was made"),
        (torch.ones(2), "a Tensor; expected a torch optimizer"),
        ("adam", "a str; expected a torch optimizer"),
        (None, "a NoneType; expected"),
        (3, "an int; expected"),
        ([], "an empty list; expected"),
        ({}, "an empty dict; expected"),
        (only_step(), r"a Step; .* Add memory\.penalty\(\) to the loss"),
        (never_made(), r"a Wrong that never called Optimizer\.__init__"),
    ],
)
def test_what_is_no_optimizer(given, said):
    memory = consolidated(network())
    with pytest.raises(InputError, match=f"attach got {said}"):
        memory.attach(given)


@pytest.mark.parametrize("form", ["Gradient", "loss", "", None, 1, ["gradient"], torch.ones(2)])
def test_what_is_no_form(form):
    model = network()
    memory = consolidated(model)
    expected = "expected 'gradient' or 'proximal' or 'adaptive'"
    with pytest.raises(InputError, match=f"form=.*{expected}"):
        memory.attach(sgd(model), form=form)


class Lion(torch.optim.Optimizer):
    """Steps of the size of the learning rate, whatever the gradient."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.99)})


class Relative(torch.optim.Optimizer):
    """As transformers' Adafactor: a learning rate of None, and two ε."""

    def __init__(self, params):
        super().__init__(params, {"lr": None, "eps": (1e-30, 1e-3)})


BOTH = 'Use form="gradient" or form="proximal"'
REFUSED = {
    "Adafactor": (torch.optim.Adafactor, "adaptive", f"Adafactor.*{BOTH}"),
    "Rprop": (torch.optim.Rprop, "adaptive", f"Rprop.*{BOTH}"),
    "LBFGS": (torch.optim.LBFGS, "adaptive", f"LBFGS.*{BOTH}"),
    "Lion": (Lion, "adaptive", BOTH),
    "relative, proximal": (Relative, "proximal", r'has None\. Use form="gradient"\.$'),
    "relative, adaptive": (Relative, "adaptive", r'has None\. Use form="gradient"\.$'),
    "SparseAdam": (
        torch.optim.SparseAdam,
        "gradient",
        'SparseAdam takes sparse.*Use form="proximal" or form="adaptive"',
    ),
}


@pytest.mark.parametrize(("make", "form", "said"), REFUSED.values(), ids=REFUSED)
def test_forms_that_cannot_work_are_refused_before_a_step(make, form, said):
    model = network()
    memory = consolidated(model)
    optimizer = make(model.parameters())
    with pytest.raises(InputError, match=said):
        memory.attach(optimizer, form=form)
    assert not optimizer._optimizer_step_pre_hooks


def test_an_optimizer_in_use_that_keeps_something_else_than_adam_is_refused():
    class Eight(torch.optim.Adam):
        pass

    model = network()
    memory = consolidated(model)
    optimizer = Eight(model.parameters())
    backward(model)
    optimizer.step()
    for state in optimizer.state.values():
        state["state1"], state["state2"] = state.pop("exp_avg"), state.pop("exp_avg_sq")
    with pytest.raises(InputError, match=f"Eight keeps more .*state1, state2.*{BOTH}"):
        memory.attach(optimizer, form="adaptive")


def test_every_torch_optimizer_works_in_every_form_or_is_refused():
    """None fails at its first step."""
    refused = set()
    for name in torch.optim.__all__:
        kind = getattr(torch.optim, name)
        if not isinstance(kind, type) or kind is torch.optim.Optimizer:
            continue
        for form in ("gradient", "proximal", "adaptive"):
            model = network()
            weights = [p for p in model.parameters() if p.ndim == 2]
            memory = consolidated(model)
            optimizer = kind(weights if name == "Muon" else model.parameters(), lr=1e-3)
            with contextlib.suppress(InputError):
                memory.attach(optimizer, form=form)
            if not optimizer._optimizer_step_pre_hooks or name == "SparseAdam":
                refused.add((name, form))
                continue
            for _ in range(2):
                backward(model)
                optimizer.step(*([lambda m=model: backward(m)] if name == "LBFGS" else []))
            assert all(torch.isfinite(p).all() for p in model.parameters()), name
    assert {name for name, _form in refused} <= {
        "Adafactor",
        "LBFGS",
        "Muon",
        "Rprop",
        "SparseAdam",
    }
    assert not {one for one in refused if one[1] == "proximal"} - {("SparseAdam", "proximal")}


# ---- counted once ----


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("wrap", [lambda o: o, Wrapper, lambda o: [o]])
def test_attached_and_in_the_loss_is_warned_about_in_every_form(form, wrap):
    model = network()
    memory = consolidated(model)
    memory.attach(wrap(sgd(model)), form=form)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            (cross_entropy(model(X), Y) + memory.penalty()).backward()
    assert [str(one.message) for one in caught if "counts twice" in str(one.message)]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.penalty().item()
