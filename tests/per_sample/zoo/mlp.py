"""Fully connected models: a weight that meets each sample once, twice, sliced, tied, in columns."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import Net, weight
from .specimen import images, sequences, specimen, vectors


@specimen(images(1, 6, 6))
def mlp_with_batch_norm():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(),
        nn.Linear(20, 12, bias=False), nn.BatchNorm1d(12), nn.Tanh(),
        nn.Linear(12, 4),
    )  # fmt: skip


@specimen(vectors(9))
def mlp_inplace_activations():
    return nn.Sequential(
        nn.Linear(9, 14), nn.ReLU(inplace=True),
        nn.Linear(14, 10), nn.LeakyReLU(0.1, inplace=True),
        nn.Linear(10, 8), nn.ELU(inplace=True),
        nn.Linear(8, 3), nn.Hardtanh(-5, 5, inplace=True),
    )  # fmt: skip


@specimen(vectors(8))
def residual_mlp():
    def forward(net, x):
        for block in net.blocks:
            x = x + block(x)
        return net.head(x)

    def block():
        return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    return Net(forward, blocks=nn.ModuleList([block(), block()]), head=nn.Linear(8, 3))


@specimen(vectors(7))
def linear_used_twice():
    def forward(net, x):
        return net.head(torch.relu(net.shared(torch.tanh(net.shared(x)))))

    return Net(forward, shared=nn.Linear(7, 7), head=nn.Linear(7, 3))


@specimen(vectors(7))
def module_under_two_names():
    layer = nn.Linear(7, 7)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(7, 7), nn.ReLU(), layer, nn.Linear(7, 2))


@specimen(vectors(10))
def tied_autoencoder():
    def forward(net, x):
        code = torch.sigmoid(F.linear(x, net.weight, net.down))
        return F.linear(code, net.weight.t(), net.up)

    return Net(forward, weight=weight(4, 10), down=weight(4), up=weight(10))


@specimen(vectors(8))
def batch_in_columns():
    def forward(net, x):
        h = torch.relu(net.first @ x.t() + net.bias[:, None])  # [12, n]
        return (net.second @ h).t()

    return Net(forward, first=weight(12, 8), bias=weight(12), second=weight(3, 12))


@specimen(lambda n: torch.randn(n, 8).t(), batch_dim=1, output=lambda y: y.t())
def batch_in_columns_from_the_input():
    def forward(net, x):
        return net.second.mm(torch.tanh(torch.addmm(net.bias, net.first, x)))

    return Net(forward, first=weight(12, 8), bias=weight(12, 1), second=weight(3, 12))


@specimen(sequences(4, 6))
def flattened_tokens():
    def forward(net, x):
        n, t, d = x.shape
        h = torch.relu(net.first(x.reshape(n * t, d)))  # [n·t, d]: rows of one sample together
        return net.second(h).view(n, t, -1).mean(1)

    return Net(forward, first=nn.Linear(6, 9), second=nn.Linear(9, 3))


@specimen(sequences(4, 6))
def flattened_tokens_time_first():
    def forward(net, x):
        n, t, d = x.shape
        h = x.transpose(0, 1).reshape(t * n, d)  # [t·n, d]: rows of one sample t apart
        h = torch.relu(net.first(h))
        return net.second(h).view(t, n, -1).sum(0)

    return Net(forward, first=nn.Linear(6, 9), second=nn.Linear(9, 3))


@specimen(sequences(4, 6))
def one_layer_in_two_layouts():
    def forward(net, x):
        n, t, d = x.shape
        h = torch.tanh(net.shared(x.reshape(n * t, d))).view(n, t, d)
        h = torch.tanh(net.shared(h.transpose(0, 1).reshape(t * n, d))).view(t, n, d)
        return net.head(h.permute(1, 2, 0)).flatten(1)

    return Net(forward, shared=nn.Linear(6, 6), head=nn.Linear(4, 2))


@specimen(sequences(5, 4))
def set_prediction():
    """Output [n, T, classes]."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


@specimen(sequences(5, 4))
def higher_rank_linear():
    """A Linear over [n, 5, 2, 2] and a matmul with a parameter of three dimensions."""

    def forward(net, x):
        h = torch.tanh(net.first(x.unflatten(2, (2, 2))))  # [n, 5, 2, 3]
        return torch.matmul(h, net.stack).sum((1, 2))

    return Net(forward, first=nn.Linear(2, 3), stack=weight(5, 3, 4))


@specimen(lambda n: [torch.randn(n, 5), torch.randn(n, 7)])
def bilinear_of_two_inputs():
    def forward(net, a, b):
        return net.head(torch.tanh(net.bilinear(a, b)))

    return Net(forward, bilinear=nn.Bilinear(5, 7, 6), head=nn.Linear(6, 2))


@specimen(
    lambda n: {"left": torch.randn(n, 6), "right": torch.randn(n, 6)}, vanishing=("tower.2.bias",)
)
def siamese():
    def forward(net, left, right):
        return net.head((net.tower(left) - net.tower(right)).abs())

    tower = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 5))
    return Net(forward, tower=tower, head=nn.Linear(5, 3))


@specimen(vectors(6))
def gated_units():
    return nn.Sequential(
        nn.Linear(6, 16), nn.GLU(), nn.Linear(8, 12), nn.SiLU(), nn.Linear(12, 9), nn.Softmax(1)
    )


@specimen(vectors(6))
def maxout():
    def forward(net, x):
        return net.head(net.pieces(x).unflatten(1, (4, 5)).amax(1))

    return Net(forward, pieces=nn.Linear(6, 20), head=nn.Linear(5, 3))


@specimen(vectors(6))
def prelu_single():
    return nn.Sequential(
        nn.Linear(6, 12), nn.PReLU(), nn.Linear(12, 5), nn.PReLU(), nn.Linear(5, 3)
    )


@specimen(images(3, 5, 5))
def prelu_per_channel():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.PReLU(6),
        nn.Flatten(),
        nn.Linear(54, 7),
        nn.PReLU(7),
        nn.Linear(7, 3),
    )


@specimen(sequences(4, 6))
def grouped_linear_by_bmm():
    """A different weight per position: the batch is the middle dimension of a bmm."""

    def forward(net, x):
        h = torch.baddbmm(net.bias, x.transpose(0, 1), net.weight)  # [4, n, 5]
        return net.head(torch.relu(h).transpose(0, 1).flatten(1))

    return Net(forward, weight=weight(4, 6, 5), bias=weight(4, 1, 5), head=nn.Linear(20, 3))


@specimen(vectors(6))
def one_unit():
    """Output [n, 1] from matrix-vector products."""

    def forward(net, x):
        h = torch.tanh(net.hidden(x))
        return (torch.mv(h, net.vector) + net.bias).unsqueeze(1)

    return Net(forward, hidden=nn.Linear(6, 8), vector=weight(8), bias=weight())


@specimen(vectors(6))
def scalar_output_without_dimension():
    """Output [n]."""

    def forward(net, x):
        return net.head(torch.relu(net.hidden(x))).squeeze(1)

    return Net(forward, hidden=nn.Linear(6, 8), head=nn.Linear(8, 1))
