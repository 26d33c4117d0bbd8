"""Padding does not count: Ω is the same however far, and on which side, texts are padded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError
from tests.samples.tiny import DECODERS, ENCODERS, assert_same, omega, padded, ready, texts

BOTH = DECODERS | ENCODERS


class Convolved(nn.Module):
    """Convolutions along a sequence, channels first, and linear layers with the sequence first."""

    def __init__(self):
        super().__init__()
        self.embed, self.conv = nn.Embedding(31, 6), nn.Conv1d(6, 6, 1)
        self.act, self.body, self.head = nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, input_ids, attention_mask=None):
        channels = self.act(self.conv(self.embed(input_ids).mT))
        body = torch.relu(self.body(channels.permute(2, 0, 1)))
        if attention_mask is not None:
            body = body * attention_mask.T.unsqueeze(2)
        return self.head(body.sum(0))


MODELS = BOTH | {"convolved": Convolved}


def alone(model, some):
    return omega(model, [{"input_ids": text[None]} for text in some], kind=retain.LocalMAS)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_width_and_side_change_nothing(name, side):
    model, some = ready(MODELS[name]), texts(3, 7, 5, 1)
    positions = side == "left" and name not in ("t5 encoder", "convolved")
    batches = [padded(some, width, side=side, positions=positions) for width in (7, 12)]
    truth = dict(alone(model, some))
    # the pooler reads the first position, be it padding
    pooled = {n for n in truth if n.startswith("pooler") and side == "left"}
    assert truth.keys() - pooled
    for batch in batches:
        found = omega(model, [batch], kind=retain.LocalMAS)
        assert found.samples == 4
        assert_same(
            *({n: t for n, t in each.items() if n not in pooled} for each in (found, truth))
        )


@pytest.mark.parametrize("by", ["name", "position"])
@pytest.mark.parametrize("name", ["bert", "convolved"])
def test_while_serving_too(name, by):
    model, some = ready(MODELS[name]), texts(3, 7, 5, 1)
    memory = retain.LocalMAS(model)
    with torch.inference_mode(), memory.observing():
        for part, width in ((some[:2], 7), (some[2:], 11)):
            batch = padded(part, width)
            model(**batch) if by == "name" else model(*batch.values())
    assert memory.observed.samples == 4
    assert_same(memory.observed, alone(model, some))


class Marked(Convolved):
    """Padding has a name of its own."""

    def forward(self, input_ids, ignored):
        return super().forward(input_ids, ~ignored)


def test_a_mask_that_only_the_user_knows():
    model, some = ready(Marked), texts(3, 7, 5, 1)
    batch = padded(some, 9)
    ids, ignored = batch["input_ids"], batch["attention_mask"] == 0
    memory = retain.LocalMAS(model, padding_mask="ignored")
    with memory.observing():
        model(ids, ignored)
        model(input_ids=ids, ignored=ignored)
    assert memory.observed.samples == 8
    truth = omega(
        model, [{"input_ids": t[None], "ignored": torch.zeros(1, len(t)).bool()} for t in some],
        kind=retain.LocalMAS,
    )  # fmt: skip
    assert_same(memory.observed, truth)
    for more in ({"padding_mask": lambda batch: batch}, {"samples_of": "ignored"}):
        memory = retain.LocalMAS(model, **more)
        with pytest.raises(InputError, match=f"{next(iter(more))} cannot"), memory.observing():
            pass


def test_two_sequences_of_one_length_are_told_apart_or_refused():
    class Translates(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.read, self.write = (
                nn.Embedding(31, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 4),
            )
            self.head = nn.Linear(4, 2)

        def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask):
            read = torch.tanh(self.read(self.embed(input_ids))) * attention_mask.unsqueeze(2)
            written = self.embed(decoder_input_ids) + read.sum(1, keepdim=True)
            written = torch.tanh(self.write(written)) * decoder_attention_mask.unsqueeze(2)
            return self.head(written.sum(1))

    model = ready(Translates)
    source, target = texts(3, 5), texts(4, 2)

    def batch(some, others, widths):
        one, other = padded(some, widths[0]), padded(others, widths[1], prefix="decoder_")
        return one | other

    truth = omega(
        model,
        [batch([s], [t], (len(s), len(t) + (len(s) == len(t)))) for s, t in zip(source, target)],
        kind=retain.LocalMAS,
    )
    found = omega(model, [batch(source, target, (6, 9))], kind=retain.LocalMAS)
    assert_same(found, truth)
    with pytest.raises(InputError, match=r"Two sequences .* read\.weight"):
        omega(model, [batch(source, target, (6, 6))], kind=retain.LocalMAS)
