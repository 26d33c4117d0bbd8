"""Recurrent models: fused, cell by cell, in both directions, with states, lengths and packing."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .blocks import Net, weight
from .specimen import sequences, sequences_first, specimen


def _last(net, x):
    return net.head(net.rnn(x)[0][:, -1])


def _mean(net, x):
    return net.head(net.rnn(x)[0].mean(1))


@specimen(sequences(6, 4))
def lstm():
    return Net(_last, rnn=nn.LSTM(4, 5, batch_first=True), head=nn.Linear(5, 3))


@specimen(sequences(5, 4))
def lstm_bidirectional_two_layers():
    rnn = nn.LSTM(4, 3, num_layers=2, bidirectional=True, dropout=0.3, batch_first=True)
    return Net(_mean, rnn=rnn, head=nn.Linear(6, 3))


@specimen(sequences_first(5, 4), batch_dim=1)
def lstm_sequence_first():
    return Net(
        lambda net, x: net.head(net.rnn(x)[1][0][-1]), rnn=nn.LSTM(4, 5, 2), head=nn.Linear(5, 3)
    )


@specimen(sequences_first(5, 4), samples=5, batch_dim=1, output=lambda y: y.transpose(0, 1))
def lstm_sequence_first_as_long_as_wide():
    """T = N, and F(x) is a whole sequence."""
    return Net(lambda net, x: net.head(net.rnn(x)[0]), rnn=nn.LSTM(4, 5), head=nn.Linear(5, 3))


@specimen(sequences(5, 4))
def lstm_with_projection():
    return Net(_last, rnn=nn.LSTM(4, 6, proj_size=3, batch_first=True), head=nn.Linear(3, 3))


@specimen(sequences(6, 4))
def gru():
    return Net(_last, rnn=nn.GRU(4, 5, batch_first=True), head=nn.Linear(5, 3))


@specimen(sequences(5, 4))
def gru_bidirectional_two_layers():
    rnn = nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True)
    return Net(_mean, rnn=rnn, head=nn.Linear(6, 3))


@specimen(sequences(6, 4))
def rnn_relu_without_bias():
    rnn = nn.RNN(4, 5, nonlinearity="relu", bias=False, batch_first=True)
    return Net(_last, rnn=rnn, head=nn.Linear(5, 3))


@specimen(sequences(5, 4))
def lstm_cell_loop():
    def forward(net, x):
        h = c = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            h, c = net.cell(step, (h, c))
        return net.head(h)

    return Net(forward, cell=nn.LSTMCell(4, 6), head=nn.Linear(6, 3))


@specimen(sequences(5, 4))
def gru_cell_loop_with_learned_start():
    def forward(net, x):
        h = net.start.expand(len(x), -1)
        outputs = []
        for step in x.unbind(1):
            h = net.cell(step, h)
            outputs.append(net.head(h))
        return torch.stack(outputs, 1)  # [n, T, 3]

    return Net(forward, cell=nn.GRUCell(4, 6), start=weight(1, 6), head=nn.Linear(6, 3))


@specimen(sequences(5, 4))
def lstm_with_learned_start():
    def forward(net, x):
        start = (net.h.expand(-1, len(x), -1).contiguous(), net.c.repeat(1, len(x), 1))
        return net.head(net.rnn(x, start)[0].mean(1))

    rnn = nn.LSTM(4, 5, batch_first=True)
    return Net(forward, rnn=rnn, h=weight(1, 1, 5), c=weight(1, 1, 5), head=nn.Linear(5, 3))


@specimen(sequences(5, 4))
def scan_over_time_with_a_shared_cell():
    """A recurrence by hand: a matrix, a decay per channel and a gate, used at each step."""

    def forward(net, x):
        state = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            state = net.decay.sigmoid() * state + torch.tanh(net.enter(step) + state @ net.mix)
        return state @ net.head

    return Net(forward, enter=nn.Linear(4, 6), decay=weight(6), mix=weight(6, 6), head=weight(6, 3))


@specimen(lambda n: {"x": 2 * torch.randn(n, 5, 4), "lengths": torch.arange(n) % 5 + 1})
def lstm_of_packed_sequences():
    def forward(net, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(net.rnn(packed)[0], batch_first=True)
        return net.head(padded.sum(1))

    return Net(forward, rnn=nn.LSTM(4, 5, batch_first=True), head=nn.Linear(5, 3))


@specimen(sequences(6, 4))
def temporal_convolution_then_gru():
    def forward(net, x):
        h = torch.relu(net.conv(x.transpose(1, 2))).transpose(1, 2)
        return net.head(net.rnn(h)[0].amax(1))

    return Net(
        forward, conv=nn.Conv1d(4, 5, 2), rnn=nn.GRU(5, 4, batch_first=True), head=nn.Linear(4, 3)
    )
