"""A borrowed model is given back as it was, also when an exception passes through."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from retain.borrowed import borrowed


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
    hooks = torch.autograd.graph.saved_tensors_hooks(packed.append, lambda _none: None)
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
    places = [
        (torch.autograd.graph.saved_tensors_hooks, ("__enter__", "__exit__")),
        (torch.utils.checkpoint.CheckpointFunction, ("apply",)),
        (torch._VF, ("lstm", "gru", "rnn_tanh", "rnn_relu")),
    ]
    before = [{name: vars(owner).get(name) for name in names} for owner, names in places]
    with borrowed(nn.Identity()), borrowed(nn.Identity()):
        meanwhile = [{name: vars(owner).get(name) for name in names} for owner, names in places]
    assert [{n: vars(owner).get(n) for n in names} for owner, names in places] == before
    for one, other in zip(before, meanwhile, strict=True):
        assert not any(one[name] is other[name] for name in one)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_give_the_same_in_steps(cell):
    model, x = cell(3, 4, num_layers=2, bidirectional=True), torch.randn(2, 5, 3)
    expected = model(x)[0]
    with borrowed(model):
        torch.testing.assert_close(model(x)[0], expected)
