"""The local rule: padding does not count in any layer, and packed texts are texts."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import retain

from .tiny import (
    DECODERS,
    ENCODERS,
    LONGEST,
    assert_same,
    encoder_decoder,
    flattened,
    omega,
    padded,
    ready,
    texts,
)

MODELS = DECODERS | ENCODERS


class Timed(nn.Module):
    """Convolutions and a non-linearity whose value at zero is not zero, over time."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(31, 6)
        self.conv, self.mix = nn.Conv1d(6, 5, 1), nn.Linear(5, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        h = torch.sigmoid(self.conv(self.embed(input_ids).mT)).mT
        return self.out(torch.sigmoid(self.mix(h)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5 encoder", "timed"])
def test_padding_does_not_count(name):
    model, some = ready(MODELS.get(name, Timed)), texts(3, LONGEST, 5, 2)
    alone = omega(model, [padded([text], len(text)) for text in some], retain.LocalMAS)
    assert_same(omega(model, [padded(some, 12)], retain.LocalMAS), alone, within=1e-8)
    left = padded(some, 10, side="left", positions=name in DECODERS or name == "bert")
    assert_same(omega(model, [left], retain.LocalMAS), alone, within=1e-8)
    parts = [padded(some[:3], 9, dtype=torch.bool), padded(some[3:], 4)]
    assert_same(omega(model, parts, retain.LocalMAS), alone, within=1e-8)


@pytest.mark.parametrize("widths", [(LONGEST, 9), (9, 9)])
def test_an_encoder_and_a_decoder(widths):
    """Layers go by the mask of the sequence that they read, also where both are equally long."""
    model, asked, answers = ready(encoder_decoder), texts(3, LONGEST, 5), texts(6, 2, 4)

    def both(questions, replies, wide):
        return padded(questions, wide[0]) | padded(replies, wide[1], prefix="decoder_")

    alone = [both([a], [b], (len(a), len(b))) for a, b in zip(asked, answers, strict=True)]
    truth = omega(model, alone, retain.LocalMAS)
    assert_same(omega(model, [both(asked, answers, widths)], retain.LocalMAS), truth, within=1e-8)


def test_padding_does_not_count_while_serving():
    model, some = ready(MODELS["bert"]), texts(3, LONGEST, 5)
    alone = omega(model, [padded([text], len(text)) for text in some], retain.LocalMAS)
    batch = padded(some, 12)
    memory = retain.LocalMAS(model)
    with memory.observing(), torch.no_grad():
        model(**batch)
    assert_same(memory.observed, alone, within=1e-8)
    by_position = retain.LocalMAS(model)
    with by_position.observing(), torch.no_grad():
        model(batch["input_ids"], batch["attention_mask"])
    assert_same(by_position.observed, alone, within=1e-8)


def test_packed_texts_count_as_texts():
    model, some = ready(MODELS["llama"]), texts(3, LONGEST, 5)
    alone = omega(model, [{"input_ids": text[None]} for text in some], retain.LocalMAS)
    packed = omega(model, [flattened(some)], retain.LocalMAS)
    assert packed.samples == 3
    assert_same(packed, alone, within=1e-8)
    memory = retain.LocalMAS(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with memory.observing(), torch.no_grad():
            model(**flattened(some))
    assert any("packed" in str(w.message) for w in caught)
    assert not memory.observed
