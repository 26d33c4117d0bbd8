"""Models of tokens: tables that are looked up, added, shared, padded and bagged."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import Net, weight
from .specimen import specimen, tokens

V = 11


@specimen(tokens(6, V))
def embedding():
    def forward(net, x):
        return net.head(torch.tanh(net.hidden(net.table(x).flatten(1))))

    return Net(forward, table=nn.Embedding(V, 4), hidden=nn.Linear(24, 8), head=nn.Linear(8, 3))


@specimen(tokens(6, V))
def embedding_with_padding_and_positions():
    def forward(net, x):
        h = net.table(x) + net.position(torch.arange(x.shape[1]))
        keep = (x != 0).unsqueeze(2)
        return net.head(torch.relu(net.hidden(h)).mul(keep).sum(1))

    return Net(
        forward, table=nn.Embedding(V, 4, padding_idx=0), position=nn.Embedding(6, 4),
        hidden=nn.Linear(4, 8), head=nn.Linear(8, 3),
    )  # fmt: skip


@specimen(tokens(6, V))
def embedding_sequence_first():
    """[T·n] tokens in one row, looked up at once."""

    def forward(net, x):
        n, t = x.shape
        h = net.table(x.t().reshape(-1)) * net.scale  # [T·n, 4]
        return net.head(torch.tanh(h).view(t, n, -1).sum(0))

    return Net(forward, table=nn.Embedding(V, 4), scale=weight(4), head=nn.Linear(4, 3))


@specimen(tokens(5, V))
def tied_language_model():
    def forward(net, x):
        h = net.table(x)
        h = h + torch.tanh(net.mix(h)).cumsum(1)
        return F.linear(h, net.table.weight, net.bias)  # [n, T, V]

    return Net(forward, table=nn.Embedding(V, 6), mix=nn.Linear(6, 6), bias=weight(V))


@specimen(tokens(5, V))
def tied_by_sharing_the_parameter():
    table, head = nn.Embedding(V, 6), nn.Linear(6, V, bias=False)
    head.weight = table.weight
    return nn.Sequential(table, nn.Linear(6, 6), nn.GELU(), head)


@specimen(tokens(6, V))
def two_tables_and_a_shared_one():
    def forward(net, x):
        pairs = x[:, :-1] * 3 + x[:, 1:] % 3  # hashed bigrams
        h = net.letters(x)[:, 1:] + net.pairs(pairs) + net.letters(x)[:, :-1].flip(1)
        return net.head(torch.relu(h).amax(1))

    return Net(
        forward, letters=nn.Embedding(V, 5), pairs=nn.Embedding(3 * V, 5), head=nn.Linear(5, 3)
    )


@specimen(tokens(6, V))
def embedding_bag_sum():
    bag = nn.EmbeddingBag(V, 5, mode="sum")
    return nn.Sequential(bag, nn.Tanh(), nn.Linear(5, 3))


@specimen(tokens(6, V))
def embedding_bag_mean_with_padding():
    bag = nn.EmbeddingBag(V, 5, mode="mean", padding_idx=2)
    return nn.Sequential(bag, nn.Tanh(), nn.Linear(5, 3))


@specimen(tokens(6, V))
def embedding_bag_max():
    return nn.Sequential(nn.EmbeddingBag(V, 5, mode="max"), nn.Tanh(), nn.Linear(5, 3))


@specimen(tokens(6, V))
def embedding_bag_with_offsets():
    """All tokens of the batch in one row, and where each sample's two bags begin."""

    def forward(net, x):
        n, t = x.shape
        bags = net.table(x.reshape(-1), torch.arange(0, n * t, t // 2))  # [2·n, 5]
        return net.head(torch.tanh(bags).view(n, -1))

    return Net(forward, table=nn.EmbeddingBag(V, 5, mode="mean"), head=nn.Linear(10, 3))


@specimen(lambda n: {"x": torch.randint(V, (n, 6)), "weights": torch.randn(n, 6)})
def embedding_bag_weighted():
    """Weights of the tokens come with the data, scaled by a parameter per place."""

    def forward(net, x, weights):
        bags = net.table(x, per_sample_weights=weights * net.places)
        return net.head(torch.tanh(bags))

    table = nn.EmbeddingBag(V, 5, mode="sum")
    return Net(forward, table=table, places=weight(6), head=nn.Linear(5, 3))


@specimen(tokens(6, V))
def embedding_bags_of_which_some_are_empty():
    """Three bags for each sample: the first is empty, the second may hold nothing but padding."""

    def forward(net, x):
        n, t = x.shape
        start = torch.arange(0, n * t, t)
        offsets = torch.stack([start, start, start + 1], 1).flatten()
        rows = torch.where(x < 4, 0, x).reshape(-1)
        of_bags = [bag(rows, offsets).view(n, -1) for bag in (net.mean, net.largest)]
        return net.head(torch.tanh(torch.cat(of_bags, 1)))

    mean, largest = (nn.EmbeddingBag(V, 5, mode=mode, padding_idx=0) for mode in ("mean", "max"))
    return Net(forward, mean=mean, largest=largest, head=nn.Linear(30, 3))


@specimen(tokens(6, V))
def one_hot_products():
    def forward(net, x):
        rows = F.one_hot(x, V).to(net.table.dtype) @ net.table
        return net.head(torch.tanh(rows).mean(1))

    return Net(forward, table=weight(V, 5), head=nn.Linear(5, 3))


@specimen(tokens(6, V))
def lookups_by_indexing():
    """`index_select`, fancy indexing and `gather` from parameters, with repeats in a sample."""

    def forward(net, x):
        h = net.rows.index_select(0, x.reshape(-1)).view(*x.shape, -1)
        h = h + net.scale[x].unsqueeze(2) + net.columns[:, x % 4].permute(1, 2, 0)
        each = net.each.expand(len(x), -1).gather(1, x)
        return net.head(torch.tanh(h).mean(1)) + each[:, :3]

    return Net(
        forward, rows=weight(V, 5), scale=weight(V), columns=weight(5, 4), each=weight(1, V),
        head=nn.Linear(5, 3),
    )  # fmt: skip


@specimen(tokens(6, 4))
def lookups_of_rows_and_elements():
    """One table of which rows are looked up, counted from the end, single elements, and a block."""

    def forward(net, x):
        before = x.roll(1, 1)
        h = net.table[-1 - x] + net.table[x, before].unsqueeze(2) + net.kernels[x, before].sum(2)
        return net.head(torch.tanh(h).mean(1))

    return Net(forward, table=weight(4, 5), kernels=weight(4, 4, 2, 5), head=nn.Linear(5, 3))


@specimen(tokens(6, V))
def embedding_scaled_by_frequency():
    """The backward divides by how often a token occurs: in the sample, not in the batch."""

    def forward(net, x):
        return net.head(torch.tanh(net.table(x)).flatten(1))

    return Net(forward, table=nn.Embedding(V, 4, scale_grad_by_freq=True), head=nn.Linear(24, 3))


@specimen(tokens(6, V))
def sparse_embedding():
    def forward(net, x):
        return net.head(torch.tanh(net.table(x)).sum(1))

    return Net(forward, table=nn.Embedding(V, 4, sparse=True), head=nn.Linear(4, 3))


@specimen(tokens(6, V))
def text_convolution():
    def forward(net, x):
        h = net.table(x).transpose(1, 2)
        pools = [torch.relu(conv(h)).amax(2) for conv in net.convs]
        return net.head(torch.cat(pools, 1))

    return Net(
        forward, table=nn.Embedding(V, 5), head=nn.Linear(8, 3),
        convs=nn.ModuleList([nn.Conv1d(5, 4, k) for k in (2, 3)]),
    )  # fmt: skip
