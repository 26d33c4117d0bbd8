"""Weights and batches large enough that whatever works in pieces works in several."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import Net, weight
from .specimen import images, sequences, specimen, tokens, vectors


@specimen(vectors(600))
def wide_mlp():
    return nn.Sequential(nn.Linear(600, 500), nn.ReLU(), nn.Linear(500, 4))


@specimen(sequences(3, 600))
def wide_tokens():
    return nn.Sequential(nn.Linear(600, 500), nn.ReLU(), nn.Linear(500, 4))


@specimen(sequences(3, 500))
def wide_tokens_time_first():
    """[T·n, d], and the weight stored the other way round."""

    def forward(net, x):
        n, t, d = x.shape
        h = torch.relu(x.transpose(0, 1).reshape(t * n, d) @ net.weight + net.bias)
        return net.head(h).view(t, n, -1).sum(0)

    return Net(forward, weight=weight(500, 700), bias=weight(700), head=nn.Linear(700, 3))


@specimen(sequences(3, 550))
def wide_layer_used_twice():
    def forward(net, x):
        return net.head(torch.relu(net.shared(torch.tanh(net.shared(x)))))[:, 0]

    return Net(forward, shared=nn.Linear(550, 550), head=nn.Linear(550, 3))


@specimen(sequences(4, 180), samples=20)
def many_middling_tokens():
    return nn.Sequential(nn.Linear(180, 150), nn.ReLU(), nn.Linear(150, 160), nn.Linear(160, 2))


@specimen(sequences(3, 300))
def wide_experts():
    """Rows without a fixed owner, and weights that take several pieces."""

    def forward(net, x):
        rows = x.reshape(-1, 300)
        left = rows[:, 0] > 0
        h = rows.new_zeros(len(rows), 900)
        h[left], h[~left] = net.left(rows[left]), net.right(rows[~left])
        return net.head(torch.relu(h)).view(len(x), 3, -1).mean(1)

    return Net(forward, left=nn.Linear(300, 900), right=nn.Linear(300, 900), head=nn.Linear(900, 3))


@specimen(tokens(6, 3000))
def wide_tied_vocabulary():
    def forward(net, x):
        h = net.mix(net.table(x).mean(1)).tanh()
        return F.linear(h, net.table.weight)

    return Net(forward, table=nn.Embedding(3000, 100), mix=nn.Linear(100, 100))


@specimen(images(96, 4, 4))
def wide_convolutions():
    return nn.Sequential(
        nn.Conv2d(96, 320, 3), nn.ReLU(), nn.Conv2d(320, 400, 1), nn.ReLU(),
        nn.ConvTranspose2d(400, 80, 2), nn.ReLU(), nn.Flatten(), nn.Linear(720, 3),
    )  # fmt: skip


@specimen(vectors(500))
def wide_weight_norm():
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(500, 600)), nn.Tanh(), nn.Linear(600, 3)
    )
