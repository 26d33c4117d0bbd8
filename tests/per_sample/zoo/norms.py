"""Normalisations, and parameters that scale or shift."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import Net, weight
from .specimen import images, sequences, specimen


@specimen(images(3, 6, 6))
def group_norm():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 6, 2), nn.GroupNorm(1, 6),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


@specimen(images(3, 6, 6), vanishing=("0.bias",))
def instance_norm():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.InstanceNorm2d(5, affine=True), nn.ReLU(), nn.Flatten(),
        nn.Linear(80, 3),
    )  # fmt: skip


@specimen(images(3, 9))
def instance_norm_with_running_statistics():
    return nn.Sequential(
        nn.Conv1d(3, 5, 3), nn.InstanceNorm1d(5, affine=True, track_running_stats=True), nn.ReLU(),
        nn.Conv1d(5, 2, 3), nn.Flatten(), nn.Linear(10, 3),
    )  # fmt: skip


@specimen(images(3, 6, 6))
def batch_norm_before_a_class_token():
    """What arrives at the batch norm is a part of a larger tensor, channels last."""

    def forward(net, x):
        places = net.norm(net.stem(x)).flatten(2).transpose(1, 2)
        rows = torch.cat([net.token.expand(len(x), -1, -1), places], 1)
        return net.head(torch.tanh(net.hidden(rows)).mean(1))

    return Net(
        forward, stem=nn.Conv2d(3, 5, 3), norm=nn.BatchNorm2d(5), token=weight(1, 1, 5),
        hidden=nn.Linear(5, 5), head=nn.Linear(5, 3),
    )  # fmt: skip


@specimen(sequences(4, 6))
def layer_norm():
    return nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5), nn.LayerNorm((4, 5)),
        nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip


@specimen(images(3, 6, 6))
def layer_norm_over_channels_of_images():
    def forward(net, x):
        h = net.conv(x).permute(0, 2, 3, 1)
        h = net.norm(h).permute(0, 3, 1, 2)
        return net.head(F.gelu(h).mean((2, 3)))

    return Net(forward, conv=nn.Conv2d(3, 6, 3), norm=nn.LayerNorm(6), head=nn.Linear(6, 3))


@specimen(sequences(4, 6))
def rms_norm():
    return nn.Sequential(
        nn.Linear(6, 8), nn.RMSNorm(8), nn.SiLU(), nn.Linear(8, 5, bias=False), nn.RMSNorm(5),
        nn.Linear(5, 3),
    )  # fmt: skip


@specimen(sequences(4, 6))
def rms_norm_by_hand():
    def forward(net, x):
        h = net.first(x)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + net.scale)
        return net.head(torch.tanh(h)).mean(1)

    return Net(forward, first=nn.Linear(6, 8), scale=weight(8), head=nn.Linear(8, 3))


@specimen(images(3, 7))
def batch_norm_1d_of_signals():
    return nn.Sequential(
        nn.Conv1d(3, 5, 2, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Conv1d(5, 4, 2),
        nn.BatchNorm1d(4, momentum=None), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip


@specimen(images(2, 3, 4, 4))
def batch_norm_3d():
    return nn.Sequential(
        nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(72),
        nn.Linear(72, 3),
    )  # fmt: skip


@specimen(images(3, 6, 6))
def scale_and_shift_of_every_shape():
    """Layer scale [c, 1, 1], a scale per position [h, w], a shift per feature, a 0-dim gain."""

    def forward(net, x):
        h = torch.tanh(net.conv(x) * net.channel + net.position)
        h = h * net.gain - net.full
        return net.head(h.flatten(1) / (1 + net.feature.exp()))

    return Net(
        forward, conv=nn.Conv2d(3, 4, 3), channel=weight(4, 1, 1), position=weight(4, 4),
        gain=weight(), full=weight(1, 4, 4, 4), feature=weight(64), head=nn.Linear(64, 3),
    )  # fmt: skip


@specimen(sequences(4, 6))
def layer_scale_with_residual():
    def forward(net, x):
        x = x + net.first_scale * torch.tanh(net.first(x))
        x = torch.addcmul(x, net.second_scale, torch.relu(net.second(x)))
        return torch.lerp(x, x.mean(1, keepdim=True), net.blend.sigmoid())

    return Net(
        forward, first=nn.Linear(6, 6), second=nn.Linear(6, 6), first_scale=weight(6),
        second_scale=weight(6), blend=weight(4, 1),
    )  # fmt: skip


@specimen(lambda n: [torch.randn(n, 3, 5, 5), torch.randn(n, 4)])
def feature_wise_modulation():
    """A normalisation whose scale and shift are made from a second input (FiLM)."""

    def forward(net, x, context):
        scale, shift = net.modulate(context)[:, :, None, None].chunk(2, 1)
        h = F.group_norm(net.conv(x), 2) * (1 + scale) + shift
        return net.head(torch.relu(h).mean((2, 3)))

    return Net(forward, conv=nn.Conv2d(3, 6, 3), modulate=nn.Linear(4, 12), head=nn.Linear(6, 3))


@specimen(images(4, 6, 6))
def response_norm_and_cosine_head():
    def forward(net, x):
        h = F.local_response_norm(torch.relu(net.conv(x)), 3).flatten(1)
        return net.scale * F.linear(F.normalize(h), F.normalize(net.classes))

    return Net(forward, conv=nn.Conv2d(4, 5, 3), classes=weight(3, 80), scale=weight())
