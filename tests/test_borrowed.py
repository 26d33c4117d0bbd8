"""A borrowed model is given back as it was, also when an exception passes through."""

import copy
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import retain
from retain.borrowed import borrowed
from retain.errors import StateError


class Model(nn.Module):
    """Batch-norm, dropout, a part that is kept in eval mode, and buffers that change."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.count += 1
        return self.drop(self.frozen(self.norm(x)))


def snapshot(model):
    return {
        "modes": [m.training for m in model.modules()],
        "buffers": {name: (b, b.clone()) for name, b in model.named_buffers()},
        "hooks": [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()],
        "random": (torch.get_rng_state(), random.getstate(), str(np.random.get_state())),
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "flags": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def assert_given_back(model, before):
    after = snapshot(model)
    for kind in ("modes", "hooks", "wanted", "flags"):
        assert after[kind] == before[kind], kind
    assert after["buffers"].keys() == before["buffers"].keys()
    for name, (buffer, values) in after["buffers"].items():
        assert buffer is before["buffers"][name][0], name
        assert torch.equal(values, before["buffers"][name][1]), name
    assert torch.equal(after["random"][0], before["random"][0])
    assert after["random"][1:] == before["random"][1:]
    for one, other in zip(after["grads"], before["grads"], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def disturb(model):
    """Everything that a pass may do to a model."""
    model.train()
    model(torch.randn(5, 3))
    model.frozen.train()
    model.norm.running_mean = torch.full((3,), 9.0)  # another tensor, not other values
    model.nothing = torch.ones(2)
    model.norm.running_var.zero_()
    random.random()
    np.random.rand()


def disturb_and_fail(model, error):
    disturb(model)
    raise error


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_everything_is_given_back(error):
    model = Model()
    model.norm.weight.requires_grad_(False)
    model.norm.bias.grad = torch.ones(3)
    before = snapshot(model)
    if error is None:
        with borrowed(model):
            disturb(model)
    else:
        with pytest.raises(error), borrowed(model):
            disturb_and_fail(model, error)
    assert_given_back(model, before)


def test_every_module_is_in_eval_mode_meanwhile():
    model = Model()
    with borrowed(model):
        assert not any(module.training for module in model.modules())
        x = torch.randn(5, 3)
        assert torch.equal(model(x), model(x))


def test_a_mode_that_a_module_refuses_to_change_is_given_back():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Dropout()

        def train(self, mode=True):
            super().train(mode)
            self.inside.train(True)
            return self

    model = Stubborn().eval()
    model.inside.eval()
    with borrowed(model):
        pass
    assert not model.inside.training


def test_nested():
    model = Model()
    before = snapshot(model)
    with borrowed(model):
        with borrowed(model):
            disturb(model)
        assert not model.training
    assert_given_back(model, before)


def test_inference_mode_is_left_and_entered_again():
    with torch.inference_mode():
        model = nn.Linear(3, 2)
        model.register_buffer("late", torch.zeros(2))  # as a cache that was made while serving
        with borrowed(nn.Linear(3, 2)) as _, borrowed(model):
            weight = torch.randn(2, requires_grad=True)
            weight.square().sum().backward()
            assert weight.grad is not None
        assert torch.is_inference_mode_enabled()
    with borrowed(model):
        pass
    assert torch.equal(model.late, torch.zeros(2))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.fc, self.runs, self.reentrant = nn.Linear(3, 3), 0, reentrant

    def inner(self, x):
        self.runs += 1
        return torch.tanh(self.fc(x))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_off_meanwhile(reentrant):
    model, x = Checkpointed(reentrant), torch.randn(2, 3, requires_grad=True)
    with borrowed(model):
        inside = torch.autograd.grad(model(x).sum(), model.fc.weight)[0]
        assert model.runs == 1
    model.runs = 0
    model(x).sum().backward()
    assert model.runs == 2
    torch.testing.assert_close(inside, model.fc.weight.grad)


def test_saved_tensor_hooks_do_nothing_meanwhile():
    packed = []
    hooks = saved_tensors_hooks(packed.append, lambda _none: None)
    weight = torch.randn(3, requires_grad=True)
    with borrowed(nn.Identity()), hooks:
        weight.square().sum().backward()
    assert not packed
    with hooks:
        weight.square()
    assert packed


def test_the_compiler_is_not_loaded():
    """It takes seconds, and nothing can be compiled where it is not."""
    program = (
        "import sys, torch\nfrom retain.borrowed import borrowed\n"
        "with borrowed(torch.nn.Linear(2, 2)): pass\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_a_compiled_model_runs_as_it_was_written():
    runs = []

    def backend(graph, _inputs):
        def run(*args):
            runs.append(1)
            return graph.forward(*args)

        return run

    model = torch.compile(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), backend=backend)
    x = torch.randn(2, 3)
    expected = model(x)
    assert runs == [1]
    with borrowed(model):
        torch.testing.assert_close(model(x), expected)
        assert runs == [1]
    model(x)
    assert runs == [1, 1]


def test_nothing_of_torch_stays_replaced():
    before = in_torch()
    with borrowed(nn.Identity()), borrowed(nn.Identity()):
        meanwhile = in_torch()
    assert in_torch() == before
    for one, other in zip(before[0], meanwhile[0], strict=True):
        assert not any(one[name] is other[name] for name in one)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_give_the_same_in_steps(cell):
    model, x = cell(3, 4, num_layers=2, bidirectional=True), torch.randn(2, 5, 3)
    expected = model(x)[0]
    with borrowed(model):
        torch.testing.assert_close(model(x)[0], expected)


# ---- from several threads ----

PLACES = [
    (torch.autograd.graph.saved_tensors_hooks, ("__enter__", "__exit__")),
    (torch.utils.checkpoint.CheckpointFunction, ("apply",)),
    (torch._VF, ("lstm", "gru", "rnn_tanh", "rnn_relu")),
]


def in_torch():
    flags = (torch.backends.cudnn.enabled, torch._C._get_mkldnn_enabled())
    return [{name: vars(owner).get(name) for name in names} for owner, names in PLACES], flags


def in_threads(*works):
    """Run every `work()` in a thread of its own; what one raises is raised here."""
    with ThreadPoolExecutor(len(works)) as pool:
        for running in [pool.submit(work) for work in works]:
            running.result(60)


class Mixed(nn.Module):
    """Recurrent, checkpointed, with dropout and batch-norm."""

    def __init__(self):
        super().__init__()
        self.cell, self.fc = nn.LSTM(3, 4, batch_first=True), Checkpointed(reentrant=False)
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)

    def forward(self, x):
        return self.cell(self.fc(self.drop(self.norm(x).unsqueeze(1))))[0]


@pytest.mark.parametrize("shared", [True, False])
def test_four_threads_borrow_at_once(shared):
    models = [Mixed()] * 4 if shared else [Mixed() for _ in range(4)]
    for model in models:
        model.norm.bias.grad = torch.ones(3)
    x = torch.randn(5, 3)
    before, torchs = [snapshot(model) for model in models], in_torch()

    def work(model):
        start = random.Random(id(model)).random() / 1000
        for _ in range(25):
            time.sleep(start)
            with borrowed(model):
                assert not any(module.training for module in model.modules())
                assert torch.equal(model(x), model(x))
                assert all(p.grad is None for p in model.parameters())

    in_threads(*[partial(work, model) for model in models])
    for model, one in zip(models, before, strict=True):
        assert_given_back(model, one)
        assert model.norm.bias.grad.sum() == 3
    assert in_torch() == torchs
    weight = torch.ones(2, requires_grad=True)
    packed = []
    with saved_tensors_hooks(packed.append, lambda _none: None):
        weight.square()
    assert packed


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_whoever_leaves_last_gives_back_what_the_first_found(order):
    model = Model()
    model.norm.bias.grad = torch.ones(3)
    x = torch.randn(5, 3)
    before, torchs = snapshot(model), in_torch()
    inside, leave = threading.Barrier(4), [threading.Event() for _ in order]
    left = [threading.Event() for _ in order]

    def borrow(index):
        with borrowed(model):
            inside.wait(10)
            model(x)
            assert leave[index].wait(10)
            assert not model.training
        left[index].set()

    def let_go():
        inside.wait(10)
        for index in order:
            leave[index].set()
            assert left[index].wait(10)

    in_threads(let_go, *[partial(borrow, index) for index in range(3)])
    assert_given_back(model, before)
    assert in_torch() == torchs


def test_what_is_off_for_who_borrows_is_on_for_others():
    """Hooks, checkpointing and fused recurrence work in another thread as ever."""
    packed, model, x = [], Checkpointed(reentrant=True), torch.randn(2, 3, requires_grad=True)

    def elsewhere():
        weight = torch.ones(2, requires_grad=True)
        with saved_tensors_hooks(packed.append, lambda _none: None):
            weight.square()
        model(x).sum().backward()
        assert model.runs == 2

    with borrowed(nn.Identity()):
        in_threads(elsewhere)
    assert packed


def test_a_thread_that_trains_is_refused_instead_of_run_in_eval_mode():
    model, x = Model(), torch.randn(5, 3)

    def train():
        with pytest.raises(StateError, match=r"Model is being observed by another thread.*copy"):
            model(x)

    with borrowed(model):
        in_threads(train)
        model(x)
    model(x)
    assert model.training
    assert not model._forward_pre_hooks


def test_a_copy_made_meanwhile_is_a_model_of_its_own():
    model, x = Model(), torch.randn(5, 3)
    with borrowed(model):
        twin = copy.deepcopy(model).train()
        in_threads(lambda: twin(x))
    assert not twin._forward_pre_hooks
    assert twin.norm.running_mean.abs().sum() > 0


def test_a_thread_that_puts_the_model_into_training_mode_spoils_what_is_observed():
    model, x = Model(), torch.randn(5, 3)

    def train():
        model.train()
        with pytest.raises(StateError):
            model(x)

    with pytest.raises(StateError, match="cannot be trusted"), borrowed(model):
        in_threads(train)
    assert model.training


def test_a_thread_that_only_asks_is_answered():
    model, x = Model().eval(), torch.randn(5, 3)
    answer = model(x)
    with borrowed(model):
        in_threads(lambda: torch.testing.assert_close(model(x), answer))


class BackwardInside(torch.autograd.Function):
    """A backward pass that runs another, as checkpointing that off-loads does."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.run = run
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.run(x), gradient)
        return None, x.grad


@pytest.mark.parametrize("own", [torch.ones(3, 3), None])
def test_a_backward_pass_inside_leaves_no_gradient(own):
    layer, x = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    layer.weight.grad = own
    with borrowed(layer):
        BackwardInside.apply(layer, x).sum().backward()
        assert layer.weight.grad is not None
    assert layer.weight.grad is own
    assert own is None or own.sum() == 9
    assert layer.bias.grad is None


def test_what_export_and_script_made_are_observed_and_given_back():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(6, 4)
    expected = retain.MAS(plain).observe(x, progress=False).observed
    batch = {0: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(plain, (x,), dynamic_shapes=(batch,)).module()
    for made in (exported, torch.jit.script(plain)):
        modes = [module.training for module in made.modules()]
        found = retain.MAS(made).observe(x, progress=False).observed
        assert [module.training for module in made.modules()] == modes
        for name, omega in found.items():
            assert torch.allclose(omega, expected[name], rtol=1e-5), name
