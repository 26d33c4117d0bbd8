import pytest
import torch
from torch import nn

from retain.models import AutoEncoder, TaskNetwork, build_model
from retain.models.convolutional import ModuleUse, last_convolutional


class Reused(nn.Module):
    """One activation module after both convolutions, as in some published networks."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3)
        self.relu = nn.ReLU()
        self.hidden = nn.Linear(3, 4)

    def forward(self, images):
        maps = self.relu(self.second(self.relu(self.first(images))))
        return self.hidden(maps.mean((2, 3)))


def network(backbone, features) -> TaskNetwork:
    net = TaskNetwork(backbone, features).eval()
    net.add_head(2)
    return net


IMAGES = torch.rand(3, 1, 8, 8)


def test_activation_and_pooling_belong_to_the_features():
    net = build_model("cnn", input_shape=(1, 8, 8), seed=0)
    net.add_head(2)
    expected = net.backbone.convolutions(IMAGES).flatten(1)
    assert torch.equal(net.conv_features(IMAGES), expected)
    features, conv = net.features_and_conv(IMAGES)
    assert torch.equal(features, net.features(IMAGES))
    assert torch.equal(conv, expected)


def test_a_module_that_is_used_again_counts_at_its_last_use():
    net = network(Reused(), 4)
    backbone = net.backbone
    maps = backbone.second(backbone.first(IMAGES).relu()).relu()
    assert last_convolutional(backbone, IMAGES) == ModuleUse("relu", 1)
    assert torch.equal(net.conv_features(IMAGES), maps.flatten(1))
    changed = net.forward_through(IMAGES, lambda features: 2 * features)
    assert torch.equal(changed, net.head(backbone.hidden((2 * maps).mean((2, 3)))))


def test_without_convolution_it_is_what_the_heads_see():
    net = build_model("mlp", input_shape=(1, 8, 8), seed=0)
    net.add_head(2)
    assert torch.equal(net.conv_features(IMAGES), net.features(IMAGES))
    changed = net.forward_through(IMAGES, lambda features: features * 0)
    assert torch.equal(changed, net.head.bias.expand(3, 2))


@pytest.mark.parametrize(("stride", "found"), [(4, False), (2, True)])
def test_cutting_patches_is_no_convolution(stride, found):
    backbone = nn.Sequential(nn.Conv2d(1, 2, 4, stride=stride), nn.Flatten(), nn.LazyLinear(4))
    backbone(IMAGES)
    assert (last_convolutional(backbone, IMAGES) is not None) == found


def test_one_position_is_a_map_when_there_is_no_larger_one():
    backbone = nn.Sequential(nn.Conv2d(1, 5, 8), nn.ReLU(), nn.Flatten())
    assert network(backbone, 5).conv_features(IMAGES).shape == (3, 5)


def test_gradients_pass_through_features_and_reconstruction():
    net = build_model("cnn", input_shape=(1, 8, 8), seed=0)
    net.add_head(2)
    net.conv_features(IMAGES).sum().backward()
    assert net.backbone.convolutions.conv1.weight.grad.abs().sum() > 0
    encoder = AutoEncoder(net.conv_features(IMAGES).shape[1], 6)
    net.forward_through(IMAGES, encoder).sum().backward()
    assert encoder.encoder.weight.grad.abs().sum() > 0


def test_nothing_is_left_behind_even_after_an_error():
    net = network(Reused(), 4)

    def fail(_features):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        net.forward_through(IMAGES, fail)
    net.conv_features(IMAGES)
    assert not any(module._forward_hooks for module in net.modules())
