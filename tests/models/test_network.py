import copy

import pytest
import torch
from torch import nn

from retain.errors import ModelError
from retain.models import AutoEncoder, TaskNetwork, build_model


def network(**options) -> TaskNetwork:
    return build_model("mlp", input_shape=(1, 8, 8), seed=0, **options)


def test_heads_belong_to_tasks():
    net = network()
    assert [net.add_head(2), net.add_head(3)] == [0, 1]
    inputs = torch.rand(5, 1, 8, 8)
    assert net(inputs).shape == (5, 3)
    net.task = 0
    assert net(inputs).shape == (5, 2)
    assert torch.equal(net(inputs), net.heads[0](net.features(inputs)))


def test_old_heads_are_frozen_and_the_backbone_is_not():
    net = network()
    net.add_head(2)
    net.add_head(2)
    trainable = {name for name, p in net.named_parameters() if p.requires_grad}
    assert "heads.1.weight" in trainable
    assert "heads.0.weight" not in trainable
    assert "heads.0.bias" not in trainable
    assert {"backbone.layers.0.weight", "backbone.layers.2.bias"} <= trainable


def test_a_shared_head_is_made_once_and_stays_trainable():
    net = network(shared_head=True)
    assert [net.add_head(10), net.add_head(10)] == [0, 0]
    assert len(net.heads) == 1
    assert net.heads[0].weight.requires_grad
    net.task = 1
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ModelError, match="10 outputs, but the next task has 4"):
        net.add_head(4)


def test_no_head_yet():
    with pytest.raises(ModelError, match="no head for task 0"):
        network()(torch.rand(1, 1, 8, 8))


def test_the_seed_alone_decides_the_weights():
    nets = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        nets.append(network())
        nets[-1].add_head(2)
        nets[-1].add_head(2)
        assert torch.equal(before, torch.get_rng_state())
    first, second = (net.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["heads.0.weight"], first["heads.1.weight"])
    other = build_model("mlp", input_shape=(1, 8, 8), seed=1)
    other.add_head(2)
    for name in ("backbone.layers.0.weight", "heads.0.weight"):
        assert not torch.equal(first[name], other.state_dict()[name])


def test_mlp_sizes():
    assert [p.shape[0] for p in network().backbone.parameters() if p.ndim == 2] == [100, 100]
    fashion = build_model("mlp", input_shape=(1, 28, 28), seed=0)
    shapes = [tuple(p.shape) for p in fashion.backbone.parameters() if p.ndim == 2]
    assert shapes == [(400, 784), (400, 400)]


def batch_norm_network() -> TaskNetwork:
    backbone = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten()
    )
    net = TaskNetwork(backbone, 144)
    net.add_head(2)
    return net


def test_frozen_statistics_stay_while_everything_else_trains():
    net = batch_norm_network()
    norm, dropout = net.backbone[1], net.backbone[3]
    net.train()
    net(torch.rand(6, 1, 8, 8))
    moved = norm.running_mean.clone()
    assert moved.abs().sum() > 0
    net.freeze_statistics = True
    assert not norm.training
    assert dropout.training
    net.eval()
    net.train()
    net(torch.rand(6, 1, 8, 8)).sum().backward()
    assert torch.equal(norm.running_mean, moved)
    assert norm.weight.grad is not None
    assert copy.deepcopy(net).freeze_statistics
    net.freeze_statistics = False
    assert norm.training
    net(torch.rand(6, 1, 8, 8))
    assert not torch.equal(norm.running_mean, moved)


def test_unfreezing_in_eval_mode_keeps_eval_mode():
    net = batch_norm_network()
    net.eval()
    net.freeze_statistics = True
    net.freeze_statistics = False
    assert not any(module.training for module in net.modules())


def test_autoencoder_is_a_bottleneck_with_seeded_weights():
    encoder = AutoEncoder(20, 5, seed=3)
    features = torch.randn(4, 20)
    code = encoder.encode(features)
    assert code.shape == (4, 5)
    assert code.min() > 0
    assert code.max() < 1
    torch.testing.assert_close(encoder(features), encoder.decoder(code))
    assert torch.equal(AutoEncoder(20, 5, seed=3).decoder.weight, encoder.decoder.weight)
