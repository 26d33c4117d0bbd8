"""Texts that an input of any name numbers, or positions that restart: found by trying."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import retain

from .tiny import ENCODERS, assert_same, omega, one_by_one, ready, texts

V = 31


class Within(nn.Module):
    """Attention within what an input of some name numbers."""

    def __init__(self, key, *, causal=False, places=False):
        super().__init__()
        self.embed, self.out = nn.Embedding(V, 6), nn.Linear(6, 4)
        self.key, self.causal = key, causal
        self.places = nn.Embedding(16, 6) if places else None

    def forward(self, tokens, **more):
        h, number = self.embed(tokens), more[self.key]
        if self.places is not None:
            h = h + self.places(torch.arange(tokens.shape[1]))
        same = number[:, None] == number[:, :, None]
        same = same.tril() if self.causal else same
        return self.out((h @ h.mT).masked_fill(~same, -1e9).softmax(-1) @ h)


class Restarting(nn.Module):
    """Causal attention that goes back as far as position 0."""

    def __init__(self, key):
        super().__init__()
        self.embed, self.places, self.out = nn.Embedding(V, 6), nn.Embedding(16, 6), nn.Linear(6, 4)
        self.key = key

    def forward(self, tokens, **more):
        at = more[self.key]
        h, text = self.embed(tokens) + self.places(at), (at == 0).cumsum(1)
        same = (text[:, None] == text[:, :, None]).tril()
        return self.out((h @ h.mT).masked_fill(~same, -1e9).softmax(-1) @ h)


SIZES = ((3, 2, 4), (5, 4))
NUMBERS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 1, 1, 1, 1]])


def packed():
    some = texts(*SIZES[0], *SIZES[1])
    return some, torch.stack([torch.cat(some[:3]), torch.cat(some[3:])])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key", ["segment_ids", "seq_idx", "sequence_id", "document", "which"])
def test_numbers_under_any_name(key, causal):
    some, tokens = packed()
    model = ready(lambda: Within(key, causal=causal))
    truth = one_by_one(model, some, lambda t: model(t[None], **{key: torch.zeros(1, len(t))}))
    for numbers in (NUMBERS, NUMBERS + 1, NUMBERS + torch.tensor([[0], [3]])):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = omega(model, [{"tokens": tokens[:1, :3], key: numbers[:1, :3]}])
            assert found.samples == 1
            found = omega(model, [{"tokens": tokens, key: numbers}])
        assert found.samples == 5
        assert_same(found, truth)
        said = [str(w.message) for w in caught if "each of them counts" in str(w.message)]
        assert len(said) == (key == "which")  # a name that says nothing of texts


@pytest.mark.parametrize("key", ["segment_ids", "seq_idx", "which"])
@pytest.mark.parametrize("of_padding", [0, -1])
def test_numbers_of_padding(key, of_padding):
    """Less than 0; or 0, after larger numbers."""
    some = texts(3, 2, 4, 1, 4)
    tokens = torch.stack([torch.cat(some[:3]), torch.cat([*some[3:], torch.zeros(4).long()])])
    numbers = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 3, 3], [1, 2, 2, 2, 2, 0, 0, 0, 0]])
    numbers = numbers.where(numbers > 0, of_padding)
    model = ready(lambda: Within(key))
    truth = one_by_one(model, some, lambda t: model(t[None], **{key: torch.ones(1, len(t))}))
    found = omega(model, [{"tokens": tokens, key: numbers}])
    assert found.samples == 5
    assert_same(found, truth)


@pytest.mark.parametrize("key", ["input_pos", "positions"])
def test_positions_that_restart_under_any_name(key):
    some, tokens = packed()
    model = ready(lambda: Restarting(key))
    truth = one_by_one(model, some, lambda t: model(t[None], **{key: torch.arange(len(t))[None]}))
    at = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in SIZES])
    found = omega(model, [{"tokens": tokens, key: at}])
    assert found.samples == 5
    assert_same(found, truth)
    assert omega(model, [{"tokens": tokens, key: torch.arange(9).expand(2, 9)}]).samples == 2


def test_texts_whose_place_in_the_row_counts_are_refused():
    _, tokens = packed()
    model = ready(lambda: Within("segment_ids", places=True))
    with pytest.raises(retain.RetainError, match=r"5 texts are packed.*one text per row"):
        omega(model, [{"tokens": tokens, "segment_ids": NUMBERS}])


class Talk(nn.Module):
    """Each token by itself, or all of a row together: turns are no samples."""

    def __init__(self, pooled):
        super().__init__()
        self.embed, self.turn, self.out = nn.Embedding(V, 6), nn.Embedding(4, 6), nn.Linear(6, 4)
        self.pooled = pooled

    def forward(self, tokens, turn):
        h = torch.tanh(self.embed(tokens) + self.turn(turn))
        return self.out(h.mean(1) if self.pooled else h)


@pytest.mark.parametrize("pooled", [True, False])
def test_other_numbers_are_no_texts(pooled):
    _, tokens = packed()
    model = ready(lambda: Talk(pooled))
    truth = one_by_one(model, [0, 1], lambda k: model(tokens[k : k + 1], NUMBERS[k : k + 1]))
    assert_same(omega(model, [{"tokens": tokens, "turn": NUMBERS}]), truth)


def test_sentences_of_a_pair_are_one_sample():
    _, tokens = packed()
    model = ready(ENCODERS["bert"])
    types = NUMBERS.clamp(max=1)
    batch = {"input_ids": tokens, "token_type_ids": types}
    truth = one_by_one(
        model, [0, 1], lambda k: model(**{name: t[k : k + 1] for name, t in batch.items()}).logits
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*padded")
        assert_same(omega(model, [batch]), truth, within=1e-8)


def test_a_row_may_be_said_to_be_a_sample():
    _, tokens = packed()
    model = ready(lambda: Within("which"))
    truth = one_by_one(model, [0, 1], lambda k: model(tokens[k, None], which=NUMBERS[k, None]))
    found = omega(
        model,
        [{"tokens": tokens, "which": NUMBERS}],
        samples_of=lambda batch: torch.arange(len(batch["tokens"])),
    )
    assert_same(found, truth)


class PerText(nn.Module):
    """One row of output for each text."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(V, 6), nn.Linear(6, 4)

    def forward(self, tokens, segment_ids):
        at = torch.arange(len(tokens))[:, None] * 9 + segment_ids
        text = at.flatten().unique(return_inverse=True)[1]
        h = self.embed(tokens).flatten(0, 1)
        sums = torch.zeros(int(text.max()) + 1, 6, dtype=h.dtype).index_add(0, text, h)
        return self.out(torch.tanh(sums))


def test_an_output_for_each_text():
    some, tokens = packed()
    model = ready(PerText)
    truth = one_by_one(model, some, lambda t: model(t[None], torch.zeros(1, len(t)).long()))
    found = omega(model, [{"tokens": tokens, "segment_ids": NUMBERS}])
    assert found.samples == 5
    assert_same(found, truth)


class Measured(Within):
    """Attention within texts of these lengths, or that begin at these positions."""

    def forward(self, tokens, **more):
        told = more[self.key]
        lengths = told.diff() if told[0] == 0 else told
        number = torch.arange(len(lengths)).repeat_interleave(lengths)[None]
        return super().forward(tokens, **{self.key: number})


@pytest.mark.parametrize("ends", [False, True], ids=["lengths", "ends"])
@pytest.mark.parametrize("key", ["lengths", "seqlens", "indptr", "which"])
def test_lengths_and_ends_under_any_name(key, ends):
    some = texts(*SIZES[0])
    model = ready(lambda: Measured(key, causal=True))
    truth = one_by_one(model, some, lambda t: model(t[None], **{key: torch.tensor([len(t)])}))
    told = torch.tensor([0, 3, 5, 9]) if ends else torch.tensor(SIZES[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = omega(model, [{"tokens": torch.cat(some)[None], key: told}])
    assert found.samples == 3
    assert_same(found, truth)


def test_lengths_that_keep_nothing_apart():
    """Of a model that looks from one to the other: the row is the sample."""

    class Across(Within):
        def forward(self, tokens, parts):
            return super().forward(tokens, which=torch.zeros_like(tokens)) * len(parts)

    model, tokens = ready(lambda: Across("which")), torch.cat(texts(*SIZES[0]))[None]
    assert omega(model, [{"tokens": tokens, "parts": torch.tensor(SIZES[0])}]).samples == 1


def test_positions_of_nobody_between_packed_rows():
    """Fewer positions are left when the texts are cut out, of few texts as of many."""
    some = texts(5, 7, 2)
    tokens = torch.stack([torch.cat([some[0], texts(4)[0]]), torch.cat(some[1:])])
    numbers = torch.tensor([[0] * 5 + [-1] * 4, [0] * 7 + [1] * 2])
    model = ready(lambda: Within("segment_ids"))
    truth = one_by_one(
        model, some, lambda t: model(t[None], segment_ids=torch.zeros(1, len(t)).long())
    )
    assert_same(omega(model, [{"tokens": tokens, "segment_ids": numbers}]), truth)


def test_samples_of_one_row():
    some = texts(*SIZES[0])
    model, numbers = ready(lambda: Within("which")), NUMBERS[:1]
    truth = one_by_one(model, some, lambda t: model(t[None], which=torch.zeros(1, len(t)).long()))
    batch = {"tokens": torch.cat(some)[None], "which": numbers}
    assert_same(omega(model, [batch], samples_of=lambda _: numbers[0]), truth)
