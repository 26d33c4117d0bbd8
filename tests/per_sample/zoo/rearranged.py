"""Models that move samples about: sorted, flipped, halved, routed, ragged, packed together."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import Net, weight
from .specimen import sequences, specimen, tokens, vectors


@specimen(vectors(6))
def batch_sorted_and_put_back():
    """Samples go through the layers in the order of their first feature."""

    def forward(net, x):
        order = x[:, 0].argsort()
        h = torch.relu(net.hidden(x[order]))
        return net.head(h)[order.argsort()]

    return Net(forward, hidden=nn.Linear(6, 8), head=nn.Linear(8, 3))


@specimen(vectors(6))
def batch_flipped_and_put_back():
    def forward(net, x):
        h = torch.tanh(net.first(x.flip(0)))
        return net.second(h.flip(0) + net.shift).flip(0).flip(0)

    return Net(forward, first=nn.Linear(6, 8), shift=weight(8), second=nn.Linear(8, 3))


@specimen(vectors(6), samples=6)
def batch_in_two_interleaved_halves():
    def forward(net, x):
        even, odd = torch.tanh(net.first(x[::2])), torch.tanh(net.first(x[1::2]))
        h = x.new_empty(len(x), 8)
        h[::2], h[1::2] = even, odd
        return net.second(h)

    return Net(forward, first=nn.Linear(6, 8), second=nn.Linear(8, 3))


@specimen(vectors(6), samples=5)
def batch_in_chunks():
    def forward(net, x):
        return torch.cat([net.second(torch.relu(net.first(part))) for part in x.split(2)])

    return Net(forward, first=nn.Linear(6, 8), second=nn.Linear(8, 3))


@specimen(vectors(6))
def one_sample_at_a_time():
    """A Python loop over the batch inside the model."""

    def forward(net, x):
        rows = [net.head(torch.tanh(net.weight @ row + net.bias)) for row in x]
        return torch.stack(rows)

    return Net(forward, weight=weight(5, 6), bias=weight(5), head=nn.Linear(5, 3))


@specimen(vectors(6))
def both_signs_together():
    """[x, −x] as one batch of 2·n, and their outputs subtracted (mirrored augmentation)."""

    def forward(net, x):
        h = net.hidden(torch.cat([x, -x])).relu()
        left, right = net.head(h).chunk(2)
        return left - 0.5 * right

    return Net(forward, hidden=nn.Linear(6, 8), head=nn.Linear(8, 3))


@specimen(vectors(6))
def copies_of_each_sample():
    """Each sample three times in a row, with its own noise, averaged: [n·3, d]."""

    def forward(net, x):
        h = x.repeat_interleave(3, 0) * net.noise.repeat(len(x), 1)
        return net.head(torch.tanh(net.hidden(h))).view(len(x), 3, -1).mean(1)

    return Net(forward, noise=weight(3, 6), hidden=nn.Linear(6, 8), head=nn.Linear(8, 3))


@specimen(tokens(6, 9))
def ragged_tokens():
    """Tokens that are not 0 are packed into [M, d], and scattered back: who owns a row varies."""

    def forward(net, x):
        keep = x > 2
        h = torch.relu(net.hidden(net.table(x)[keep]))  # [M, 8]
        full = h.new_zeros(*x.shape, 8)
        full[keep] = net.scale * h
        return net.head(full.sum(1))

    return Net(
        forward, table=nn.Embedding(9, 5), hidden=nn.Linear(5, 8), scale=weight(8),
        head=nn.Linear(8, 3),
    )  # fmt: skip


@specimen(sequences(4, 6))
def hard_mixture_of_experts():
    """Each token goes to its best expert: [m, d] rows of no fixed owner (top 1)."""

    def forward(net, x):
        rows = x.reshape(-1, 6)
        shares = net.router(rows).softmax(1)
        best, chosen = shares.max(1)
        h = torch.zeros_like(rows)
        for e, expert in enumerate(net.experts):
            places = (chosen == e).nonzero().squeeze(1)
            h = h.index_add(0, places, best[places, None] * expert(rows[places]))
        return net.head((rows + h).view(len(x), 4, 6).mean(1))

    experts = [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(3)]
    return Net(
        forward, router=nn.Linear(6, 3), experts=nn.ModuleList(experts), head=nn.Linear(6, 3)
    )


@specimen(sequences(4, 6))
def steps_of_different_samples_side_by_side():
    """A step's row is that of the next sample for each step: owners by the element."""

    def forward(net, x):
        number, step = torch.arange(len(x))[:, None], torch.arange(4)
        skewed = x[(number + step) % len(x), step] + net.place
        rows = skewed[(number - step) % len(x), step]
        return net.head(torch.tanh(net.hidden(rows)).mean(1))

    return Net(forward, place=weight(4, 6), hidden=nn.Linear(6, 5), head=nn.Linear(5, 3))


@specimen(vectors(6), samples=7)
def sample_chooses_its_branch():
    def forward(net, x):
        out = x.new_zeros(len(x), 3)
        positive = x[:, 0] > 0
        if positive.any():
            out[positive] = net.plus(x[positive])
        if not positive.all():
            out[~positive] = torch.tanh(net.minus(x[~positive]))
        return out * net.gain

    return Net(forward, plus=nn.Linear(6, 3), minus=nn.Linear(6, 3), gain=weight(3))


@specimen(lambda n: [torch.randn(n, 4, 5), (torch.rand(n, 4, 4) > 0.5).float()])
def message_passing():
    """A graph per sample, joined into one graph of 4·n nodes with a list of edges."""

    def forward(net, nodes, adjacent):
        n, size, d = nodes.shape
        owner, source, target = adjacent.nonzero(as_tuple=True)
        flat = nodes.reshape(n * size, d)
        for layer in net.layers:
            pairs = torch.cat([flat[owner * size + source], flat[owner * size + target]], 1)
            messages = torch.relu(layer(pairs))  # [edges, 5]
            flat = torch.tanh(flat.index_add(0, owner * size + target, messages))
        return net.head(flat.view(n, size, d).sum(1))

    layers = nn.ModuleList([nn.Linear(10, 5), nn.Linear(10, 5)])
    return Net(forward, layers=layers, head=nn.Linear(5, 3))


@specimen(sequences(3, 4))
def tree_of_pairs():
    """Every pair of positions, [n·3·3, 8] rows, reduced twice."""

    def forward(net, x):
        n, t, d = x.shape
        left = x.unsqueeze(2).expand(n, t, t, d)
        pairs = torch.cat([left, left.transpose(1, 2)], 3).reshape(-1, 2 * d)
        h = torch.relu(net.pair(pairs)).view(n, t * t, -1).sum(1)
        return net.head(F.layer_norm(h, (6,), net.scale, net.shift))

    return Net(
        forward, pair=nn.Linear(8, 6), scale=weight(6), shift=weight(6), head=nn.Linear(6, 3)
    )
