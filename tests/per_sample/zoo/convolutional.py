"""Hand-made convolutional models: every option of a convolution, and blocks built of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import Net, weight
from .specimen import images, specimen


@specimen(images(3, 17))
def conv1d():
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv1d(8, 8, 3, dilation=2, groups=4), nn.ReLU(),
        nn.Conv1d(8, 4, 2, padding="same", bias=False), nn.Tanh(),
        nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip


@specimen(images(3, 40))
def conv1d_with_group_norm():
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2), nn.GroupNorm(2, 8), nn.GELU(),
        nn.Conv1d(8, 12, 3, stride=2, groups=2), nn.GroupNorm(3, 12), nn.GELU(),
        nn.ConvTranspose1d(12, 8, 3, stride=2), nn.GroupNorm(1, 8), nn.Tanh(),
        nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


@specimen(images(3, 10, 9))
def conv2d_plain():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, (3, 2)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


@specimen(images(4, 11, 8))
def conv2d_groups_dilation_stride():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, padding=2, dilation=2), nn.ReLU(),
        nn.Conv2d(8, 6, (3, 1), stride=(2, 1), padding=(1, 0)), nn.LeakyReLU(),
        nn.Conv2d(6, 6, 2, groups=3, stride=2, bias=False), nn.Tanh(),
        nn.Flatten(), nn.Linear(72, 3),
    )  # fmt: skip


@specimen(images(2, 5, 6, 5))
def conv3d():
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(),
        nn.Conv3d(4, 4, (1, 2, 3), groups=2, stride=(2, 1, 1)), nn.ReLU(),
        nn.Conv3d(4, 3, 2, bias=False), nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip


@specimen(images(2, 7, 8))
def conv2d_same_padding():
    return nn.Sequential(
        nn.Conv2d(2, 4, 4, padding="same"), nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2), nn.Tanh(),
        nn.Conv2d(4, 3, (2, 5), padding="same", bias=False), nn.Flatten(1), nn.Linear(168, 2),
    )  # fmt: skip


@specimen(images(2, 7, 8))
def conv2d_other_padding_modes():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=2, padding_mode="reflect"), nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate", stride=2), nn.Tanh(),
        nn.Conv2d(4, 3, 3, padding="same", padding_mode="circular"), nn.Tanh(),
        nn.Flatten(), nn.Linear(75, 2),
    )  # fmt: skip


@specimen(images(3, 6))
def conv_transpose_1d():
    return nn.Sequential(
        nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), nn.ReLU(),
        nn.ConvTranspose1d(4, 4, 2, groups=2, dilation=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


@specimen(images(4, 4, 5))
def conv_transpose_2d():
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(6, 3, 2, bias=False), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(3, 2, 2),
    )  # fmt: skip


@specimen(images(2, 3, 3, 3))
def conv_transpose_3d():
    return nn.Sequential(
        nn.ConvTranspose3d(2, 3, 2, stride=2), nn.ReLU(), nn.AdaptiveAvgPool3d(2),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


@specimen(images(3, 9, 9))
def depthwise_separable():
    def block(c, o, stride):
        return [
            nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False), nn.BatchNorm2d(c), nn.ReLU6(),
            nn.Conv2d(c, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU6(inplace=True),
        ]  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(3, 4, 1), *block(4, 8, 1), *block(8, 6, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


@specimen(images(4, 6, 6))
def depthwise_with_multiplier_and_large_kernel():
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, groups=4, padding=1), nn.GELU(),
        nn.Conv2d(12, 12, 7, groups=12, padding=3), nn.GELU(),
        nn.Conv2d(12, 4, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


@specimen(images(3, 7, 7))
def squeeze_and_excite():
    def forward(net, x):
        h = F.hardswish(net.stem(x))
        gate = net.expand(F.relu(net.reduce(h.mean((2, 3), keepdim=True)))).sigmoid()
        return net.head((h * gate).mean((2, 3)))

    return Net(
        forward, stem=nn.Conv2d(3, 8, 3), reduce=nn.Conv2d(8, 4, 1), expand=nn.Conv2d(4, 8, 1),
        head=nn.Linear(8, 3),
    )  # fmt: skip


@specimen(images(3, 8, 8))
def unet():
    def forward(net, x):
        top = F.relu(net.down(x))
        deep = F.relu(net.deep(F.max_pool2d(top, 2)))
        up = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
        return net.out(torch.tanh(net.merge(torch.cat([top, up], 1))))

    return Net(
        forward, down=nn.Conv2d(3, 4, 3, padding=1), deep=nn.Conv2d(4, 6, 3, padding=1),
        merge=nn.Conv2d(10, 4, 3, padding=1), out=nn.Conv2d(4, 2, 1),
    )  # fmt: skip


@specimen(images(2, 12, 12))
def one_convolution_at_two_scales():
    def forward(net, x):
        scales = [net.shared(x), net.shared(F.avg_pool2d(x, 2))]
        return net.head(torch.cat([F.relu(s).mean((2, 3)) for s in scales], 1))

    return Net(forward, shared=nn.Conv2d(2, 5, 3, padding=1), head=nn.Linear(10, 3))


@specimen(images(3, 8, 8))
def patches_by_unfold():
    """A convolution written as unfold and a product with a sliced parameter."""

    def forward(net, x):
        patches = F.unfold(x, 3, stride=2)  # [n, 27, 9]
        return net.head(torch.relu(net.filters @ patches).flatten(1))

    return Net(forward, filters=weight(5, 27), head=nn.Linear(45, 3))


@specimen(images(3, 8, 8))
def channels_last_pixel_shuffle():
    def forward(net, x):
        h = F.relu(net.first(x.contiguous(memory_format=torch.channels_last)))
        return net.second(F.channel_shuffle(F.pixel_shuffle(h, 2), 1))

    net = Net(forward, first=nn.Conv2d(3, 8, 3, stride=2), second=nn.Conv2d(2, 2, 3))
    return net.to(memory_format=torch.channels_last)


@specimen(images(3, 4, 6, 6))
def frames_folded_into_the_batch():
    """A video [n, c, f, h, w] whose frames go through a 2-d convolution as [n·f, c, h, w]."""

    def forward(net, x):
        n, _, f, *_ = x.shape
        h = F.relu(net.frame(x.transpose(1, 2).flatten(0, 1))).mean((2, 3))  # [n·f, 5]
        return net.head(h.view(n, f, -1).amax(1))

    return Net(forward, frame=nn.Conv2d(3, 5, 3), head=nn.Linear(5, 3))


@specimen(images(3, 7, 7))
def deep_narrow_with_pooling_of_every_kind():
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.MaxPool2d(2, 1), nn.Mish(), nn.Conv2d(4, 4, 2), nn.LPPool2d(2, 2),
        nn.Conv2d(4, 5, 1), nn.Softsign(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
