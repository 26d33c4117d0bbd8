"""Running statistics that stay where they are, for as long as they are asked to."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError
from retain.statistics import layers_with_statistics, moves_statistics

X = torch.randn(16, 4)


def network():
    model = nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.Unflatten(1, (3, 2)),
        nn.InstanceNorm1d(3, track_running_stats=True),
        nn.InstanceNorm1d(3),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    model.eval()
    return model.train()


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def moving(model):
    """Names of the layers whose statistics a call would move."""
    layers = layers_with_statistics(model).items()
    return [name for name, layer in layers if moves_statistics(layer)]


def moves(model):
    """Whether a call in train mode moves any statistics."""
    before = statistics(model)
    model.train()
    model(X)
    return any(not torch.equal(before[name], now) for name, now in model.named_buffers())


def test_they_stay_through_train_and_move_again_afterwards():
    model = network()
    assert moves(model)
    with retain.frozen_statistics(model) as frozen:
        assert frozen.layers == ("1", "4")
        assert not moves(model)
        assert not moves(model.eval())
        assert model[2].training, "dropout is as ever"
        assert model[1].weight.requires_grad
    assert model[1].training
    assert moves(model)


def test_what_is_computed_is_what_eval_mode_computes():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    model(3 * X + 1)
    expected = copy.deepcopy(model).eval()(X)
    with retain.frozen_statistics(model):
        model.train()
        torch.testing.assert_close(model(X), expected)
        model(X).sum().backward()
    assert model[1].weight.grad is not None


def test_the_handle_ends_it_and_ends_it_once():
    model = network()
    frozen = retain.frozen_statistics(model)
    frozen.remove()
    frozen.remove()
    assert moves(model)
    with pytest.raises(KeyError), retain.frozen_statistics(model):
        raise KeyError
    assert moves(model)


def test_the_mode_after_it_is_the_models():
    model = network()
    with retain.frozen_statistics(model):
        model.eval()
    assert not any(module.training for module in model.modules())
    model.train()
    model[1].eval()  # the user's own
    with retain.frozen_statistics(model):
        pass
    assert not model[1].training
    assert model[4].training


def test_one_inside_another():
    model = network()
    outer = retain.frozen_statistics(model)
    with retain.frozen_statistics(model):
        assert not moves(model)
    model.train()
    assert moving(model) == []
    assert not moves(model)
    outer.remove()
    assert moves(model)


def test_copies_are_frozen_with_their_handles():
    model = network()
    frozen = retain.frozen_statistics(model)
    for through in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        other, theirs = through((model, frozen))
        assert not moves(other)
        theirs.remove()
        assert moves(other)
    assert not moves(model)


@pytest.mark.parametrize("average", [True, False])
def test_statistics_that_are_taken_anew_are_taken_over_all_batches(average):
    """Of an average of frozen models: `update_bn` begins with nothing, and would end with it."""
    model, batches = network(), [X, X + 3, X * 2]
    expected = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(batches, expected)
    frozen = retain.frozen_statistics(model)
    taken = torch.optim.swa_utils.AveragedModel(model).module if average else model
    torch.optim.swa_utils.update_bn(batches, taken)
    torch.testing.assert_close(taken[1].running_mean, expected[1].running_mean)
    torch.testing.assert_close(taken[1].running_var, expected[1].running_var)
    assert not moves(taken), "and stay from then on"
    frozen.remove()


def test_wrapped_models_and_models_without():
    model = network()
    with retain.frozen_statistics(nn.DataParallel(model)) as frozen:
        assert frozen.layers == ("1", "4")
        assert not moves(model)
    assert retain.frozen_statistics(nn.Linear(2, 2)).layers == ()
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        retain.frozen_statistics("model")


def test_which_layers_would_move():
    model = network()
    assert moving(model) == ["1", "4"]
    with retain.frozen_statistics(model):
        model.train()
        assert moving(model) == []
    model.eval()
    assert moving(model) == []


def test_layers_of_ones_own_are_named():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mu", torch.zeros(4))

        def forward(self, x):
            if self.training:
                self.mu = 0.9 * self.mu + 0.1 * x.mean(0)
            return x - self.mu

    model = nn.ModuleDict({"first": Mean(), "more": nn.Sequential(Mean(), nn.BatchNorm1d(4))})
    model.train()
    for also, names in {"first": ("more.1", "first"), "more": ("more.1", "more.0")}.items():
        with retain.frozen_statistics(model, also=also) as frozen:
            assert frozen.layers == names
            layer = model.get_submodule(names[1])
            before = layer.mu.clone()
            layer.train()(X)
            assert torch.equal(layer.mu, before)
        layer(X)
        assert not torch.equal(layer.mu, before)
    with pytest.raises(InputError, match=r"'third'. The model has first, more\.0, more\.1"):
        retain.frozen_statistics(model, also=["first", "third"])


def test_batch_norm_that_does_not_move_them():
    layer = nn.BatchNorm1d(4, momentum=0.0).train()
    assert not moves_statistics(layer)
    before = layer.running_mean.clone()
    layer(X)
    assert torch.equal(layer.running_mean, before)
