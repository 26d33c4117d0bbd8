"""Transformers by torch's own modules and by hand: orders of dimensions, masks, windows, pools."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import Net, weight
from .specimen import images, sequences, sequences_first, specimen


def _layer(*, batch_first: bool, norm_first: bool = False) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        8, 2, 12, batch_first=batch_first, norm_first=norm_first, activation="gelu"
    )


def _encoder(*, batch_first: bool, norm_first: bool = False) -> nn.TransformerEncoder:
    layer = _layer(batch_first=batch_first, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _then_head(encoder, *, transposed=False, over=1):
    def forward(net, x):
        h = net.encoder(x.transpose(0, 1) if transposed else x)
        return net.head(h.mean(over))

    return Net(forward, encoder=encoder, head=nn.Linear(8, 3))


@specimen(sequences(4, 8))
def encoder_batch_first():
    return _then_head(_encoder(batch_first=True))


@specimen(sequences(5, 8), samples=5)
def encoder_batch_first_as_long_as_wide():
    return _then_head(_encoder(batch_first=True, norm_first=True))


@specimen(sequences(4, 8))
def encoder_sequence_first_inside():
    """The model takes [n, T, d] and transposes it itself."""
    return _then_head(_encoder(batch_first=False), transposed=True, over=0)


@specimen(sequences(5, 8), samples=5)
def encoder_sequence_first_inside_as_long_as_wide():
    return _then_head(_encoder(batch_first=False), transposed=True, over=0)


@specimen(sequences_first(4, 8), batch_dim=1)
def encoder_sequence_first():
    return _then_head(_encoder(batch_first=False, norm_first=True), over=0)


@specimen(sequences_first(5, 8), samples=5, batch_dim=1)
def encoder_sequence_first_as_long_as_wide():
    return _then_head(_encoder(batch_first=False), over=0)


@specimen(sequences_first(5, 8), samples=5, batch_dim=1, output=lambda y: y.transpose(0, 1))
def encoder_sequence_first_directly():
    """Nothing around the encoder; F(x) is the whole sequence, turned by `output=`; T = N."""
    return _encoder(batch_first=False)


@specimen(lambda n: {"x": torch.randn(n, 5, 8), "lengths": torch.arange(n) % 5 + 1})
def encoder_with_padding_mask():
    def forward(net, x, lengths):
        padding = torch.arange(x.shape[1]) >= lengths[:, None]
        h = net.encoder(x, src_key_padding_mask=padding)
        return net.head(h.masked_fill(padding[:, :, None], 0).sum(1) / lengths[:, None])

    return Net(forward, encoder=_encoder(batch_first=True), head=nn.Linear(8, 3))


@specimen(lambda n: {"source": torch.randn(n, 4, 8), "target": torch.randn(n, 3, 8)})
def decoder_with_cross_attention():
    def forward(net, source, target):
        causal = nn.Transformer.generate_square_subsequent_mask(3, dtype=source.dtype)
        return net.head(net.transformer(source, target, tgt_mask=causal))

    transformer = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)
    return Net(forward, transformer=transformer, head=nn.Linear(8, 3))


@specimen(sequences(4, 8))
def multihead_attention_with_every_option():
    """Other sizes of keys and values, a learned extra key, an extra zero, and its weights."""

    def forward(net, x):
        h, weights = net.attention(x, x[..., :5], x[..., 2:], need_weights=True)
        return torch.cat([net.head(h).flatten(1), weights.flatten(1)], 1)

    attention = nn.MultiheadAttention(
        8, 2, kdim=5, vdim=6, add_bias_kv=True, add_zero_attn=True, batch_first=True
    )
    return Net(forward, attention=attention, head=nn.Linear(8, 2))


@specimen(sequences(5, 6))
def causal_attention_by_hand():
    def forward(net, x):
        q, k, v = (h.unflatten(2, (2, 3)).transpose(1, 2) for h in net.qkv(x).chunk(3, 2))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [n, heads, T, 3]
        return net.out(h.transpose(1, 2).flatten(2))[:, -1]

    return Net(forward, qkv=nn.Linear(6, 18, bias=False), out=nn.Linear(6, 3))


@specimen(sequences(5, 6))
def heads_folded_into_the_batch():
    """[n·heads, T, d] through bmm, with a learned bias per head and distance."""

    def forward(net, x):
        n, t, _ = x.shape
        q, k, v = (
            h.view(n, t, 2, 3).permute(0, 2, 1, 3).reshape(n * 2, t, 3)
            for h in net.qkv(x).split(6, 2)
        )
        steps = torch.arange(t)
        bias = net.bias[:, (steps[:, None] - steps[None]).abs()]  # [heads, T, T]
        scores = torch.baddbmm(bias.repeat(n, 1, 1), q, k.transpose(1, 2), alpha=1 / math.sqrt(3))
        h = torch.bmm(scores.softmax(2), v).view(n, 2, t, 3).transpose(1, 2).reshape(n, t, 6)
        return net.out(h).mean(1)

    return Net(forward, qkv=nn.Linear(6, 18), bias=weight(2, 5), out=nn.Linear(6, 3))


@specimen(images(4, 6, 6))
def windows_of_tokens():
    """[n, c, 6, 6] as [n·9, 4, c] windows; the batch is a block of rows."""

    def forward(net, x):
        n, c, *_ = x.shape
        windows = x.view(n, c, 3, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(n * 9, 4, c)
        h = net.attention(windows, windows, windows, need_weights=False)[0] + net.position
        return net.head(torch.tanh(h).reshape(n, 36, c).mean(1))

    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    return Net(forward, attention=attention, position=weight(4, 4), head=nn.Linear(4, 3))


@specimen(images(4, 6, 6))
def grid_of_tokens():
    """[n, c, 6, 6] as [4·n, 9, c]: the batch is neither the first nor the last part of the rows."""

    def forward(net, x):
        n, c, *_ = x.shape
        h = x.view(n, c, 3, 2, 3, 2).permute(3, 0, 5, 2, 4, 1).reshape(4 * n, 9, c)
        h = torch.relu(net.mix(h.flatten(1))).view(2, n, 2, -1)
        return net.head(h.permute(1, 0, 2, 3).flatten(1))

    return Net(forward, mix=nn.Linear(36, 5), head=nn.Linear(20, 3))


@specimen(images(3, 6, 6), samples=4)
def vision_transformer_with_class_token():
    def forward(net, x):
        h = net.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([net.token.expand(len(x), -1, -1), h], 1) + net.position
        return net.head(net.encoder(h)[:, 0])

    return Net(
        forward, patch=nn.Conv2d(3, 8, 2, 2), token=weight(1, 1, 8), position=weight(1, 10, 8),
        encoder=_encoder(batch_first=True), head=nn.Linear(8, 3),
    )  # fmt: skip


@specimen(sequences(5, 6), vanishing=("score.bias",))
def softmax_pooled_attention():
    def forward(net, x):
        share = net.score(torch.tanh(net.hidden(x))).softmax(1)  # [n, T, 1]
        return net.head((share * x).sum(1))

    return Net(forward, hidden=nn.Linear(6, 5), score=nn.Linear(5, 1), head=nn.Linear(6, 3))


@specimen(sequences(5, 6))
def learned_queries():
    """A parameter, the same for each sample, asks; the samples answer (Perceiver, DETR)."""

    def forward(net, x):
        queries = net.queries.unsqueeze(1).expand(-1, len(x), -1)  # [3, n, 6]
        h, _ = net.attention(queries, x.transpose(0, 1), x.transpose(0, 1), need_weights=False)
        return net.head(torch.relu(h + queries)).transpose(0, 1)  # [n, 3, 2]

    return Net(
        forward, queries=weight(3, 6), attention=nn.MultiheadAttention(6, 2), head=nn.Linear(6, 2)
    )


@specimen(sequences(5, 6))
def learned_queries_that_go_through_layers():
    """What is computed from parameters alone, even by whole layers, meets the samples late."""

    def forward(net, x):
        one = net.prepare(F.layer_norm(net.queries, (6,)))  # [3, 6]
        queries = torch.stack([one] * len(x))
        scores = torch.baddbmm(net.bias.expand(len(x), -1, -1), queries, x.transpose(1, 2))
        return net.head(scores.softmax(2) @ x + torch.cat([one.unsqueeze(0)] * len(x)))

    prepare = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6), nn.LayerNorm(6))
    return Net(
        forward, queries=weight(3, 6), prepare=prepare, bias=weight(1, 3, 5), head=nn.Linear(6, 2)
    )


@specimen(sequences(4, 6))
def a_weight_per_head():
    """[n, heads, T, d] times [heads, d, e], and the same with one weight on the left."""

    def forward(net, x):
        h = torch.tanh(x.unflatten(2, (2, 3)).transpose(1, 2) @ net.heads)  # [n, 2, T, 5]
        h = net.mix @ h  # [T, T] from the left
        return torch.bmm(h.flatten(1).unsqueeze(0), net.single).squeeze(0)

    return Net(forward, heads=weight(2, 3, 5), mix=weight(4, 4), single=weight(1, 40, 3))


@specimen(sequences(5, 6))
def linear_attention_by_einsum():
    def forward(net, x):
        q, k, v = torch.einsum("ntd,sde->snte", x, net.projections)
        state = torch.einsum("ntd,nte->nde", k.softmax(1), v)
        return torch.einsum("nte,nef,f->nt", q.softmax(2), state, net.readout)

    return Net(forward, projections=weight(3, 6, 4), readout=weight(4))


@specimen(sequences(4, 6))
def mlp_mixer_by_transposes():
    def forward(net, x):
        x = x + net.tokens(x.transpose(1, 2)).transpose(1, 2)
        x = x + net.channels(x)
        return net.head(x.mean(1))

    def block(d):
        return nn.Sequential(nn.Linear(d, 7), nn.GELU(), nn.Linear(7, d))

    return Net(forward, tokens=block(4), channels=block(6), head=nn.Linear(6, 3))


@specimen(sequences(4, 6))
def slopes_and_temperature_per_head():
    """Learned slopes on distances, a temperature, and heads mixed by a parameter."""

    def forward(net, x):
        q, k, v = (h.unflatten(2, (2, 3)).transpose(1, 2) for h in net.qkv(x).chunk(3, 2))
        distance = (torch.arange(4)[:, None] - torch.arange(4)[None]).abs()
        scores = net.temperature.exp() * F.normalize(q, dim=3) @ F.normalize(k, dim=3).mT
        scores = (scores - net.slopes[:, None, None] * distance).softmax(3)
        h = torch.einsum("nhqk,hg,ngkd->nqgd", scores, net.mix, v)
        return net.out(h.flatten(2)).amax(1)

    return Net(
        forward, qkv=nn.Linear(6, 18), temperature=weight(), slopes=weight(2), mix=weight(2, 2),
        out=nn.Linear(6, 3),
    )  # fmt: skip


@specimen(sequences(4, 6))
def attention_with_a_learned_additive_mask():
    def forward(net, x):
        h = net.qkv(x).unflatten(2, (3, 1, 6)).permute(2, 0, 3, 1, 4)
        return net.out(F.scaled_dot_product_attention(*h, attn_mask=net.mask)[:, 0, 0])

    return Net(forward, qkv=nn.Linear(6, 18), mask=weight(4, 4), out=nn.Linear(6, 3))
