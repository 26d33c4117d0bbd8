"""How a model is called: with several items of a batch, with labels, with hooks inside."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain.samples import calls

from .tiny import V, assert_same, encoder_decoder, omega, one_by_one, padded, ready, texts


class Bags(nn.Module):
    """Texts of several lengths in one flat tensor."""

    def __init__(self, *, ended=False):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(V, 6, include_last_offset=ended), nn.Linear(6, 3)

    def forward(self, text, offsets):
        return self.out(self.bag(text, offsets).tanh())


class MayBags(Bags):
    def forward(self, text, offsets=None):
        return super().forward(text, offsets)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("kind", [Bags, MayBags, None])
def test_bags_in_any_batch(ended, kind):
    """With offsets that end with the last bag or not; side by side, with labels or without."""
    some = texts(4, 1, 3, 2)
    make = (lambda: kind(ended=ended)) if kind else Bag.of(ended)
    model, ends = ready(make), [len(t) for t in some]
    offsets = torch.tensor([0, *ends]).cumsum(0)[: 5 if ended else 4]
    alone = lambda t: model(t, torch.tensor([0, len(t)][: 1 + ended]))  # noqa: E731
    truth, labels, flat = one_by_one(model, some, alone), torch.arange(4), torch.cat(some)
    name = "text" if kind else "input"
    for batch in (
        (flat, offsets), (flat, offsets, labels), [flat, offsets], ((flat, offsets), labels),
        {name: flat, "offsets": offsets},
    ):  # fmt: skip
        found = omega(model, [batch])
        assert found.samples == 4
        assert_same(found, truth)


class Bag:
    """The layer itself."""

    @staticmethod
    def of(ended):
        return lambda: nn.EmbeddingBag(V, 6, include_last_offset=ended)


def test_a_last_bag_may_be_empty():
    model, some = ready(Bags), [*texts(4, 1), torch.zeros(0).long()]
    truth = one_by_one(model, some, lambda t: model(t, torch.tensor([0])))
    found = omega(model, [(torch.cat(some), torch.tensor([0, 4, 5]))])
    assert found.samples == 3
    assert_same(found, truth)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(5, 6), nn.Linear(4, 6)

    def forward(self, one, other):
        return torch.tanh(self.one(one)) * self.other(other)


@pytest.mark.parametrize("labelled", [True, False])
def test_what_a_model_cannot_do_without_stands_beside_the_first(labelled):
    model, a, b = ready(Two), torch.randn(6, 5).double(), torch.randn(6, 4).double()
    truth = one_by_one(model, range(6), lambda k: model(a[k : k + 1], b[k : k + 1]))
    items = (a, b, torch.arange(6)) if labelled else (a, b)
    assert_same(omega(model, DataLoader(TensorDataset(*items), batch_size=4)), truth)


def test_labels_are_never_an_input_where_there_is_another_way():
    class May(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(5, 3)

        def forward(self, x, targets=None):
            out = self.net(x)
            return out if targets is None else out * 0 + targets[:, None]

    model, x = ready(May), torch.randn(6, 5).double()
    truth = one_by_one(model, list(x), lambda row: model(row[None]))
    assert_same(omega(model, [(x, torch.arange(6.0))]), truth)


class Fields(NamedTuple):
    labels: torch.Tensor
    other: torch.Tensor
    one: torch.Tensor


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Two()

    def forward(self, batch):
        return self.inner(batch.one, batch.other)


def test_named_tuples_by_their_fields_or_whole():
    a, b = torch.randn(6, 5).double(), torch.randn(6, 4).double()
    batch = Fields(torch.arange(6), b, a)
    model = ready(Two)
    truth = one_by_one(model, range(6), lambda k: model(a[k : k + 1], b[k : k + 1]))
    assert_same(omega(model, [batch]), truth)
    whole = ready(Whole)
    truth = one_by_one(whole, range(6), lambda k: whole.inner(a[k : k + 1], b[k : k + 1]))
    assert_same(omega(whole, [batch]), truth)


@dataclass
class Record:
    one: torch.Tensor
    other: torch.Tensor
    name: str = "a record"


def test_what_is_no_tensor_and_nobody_asks_for_is_left_out():
    a, b = torch.randn(6, 5).double(), torch.randn(6, 4).double()
    model = ready(Two)
    truth = one_by_one(model, range(6), lambda k: model(a[k : k + 1], b[k : k + 1]))
    for batch in (Record(a, b), {"one": a, "other": b, "names": list("abcdef")}):
        assert_same(omega(model, [batch]), truth)
    with pytest.raises(retain.RetainError, match="more"):
        omega(model, [{"one": a, "other": b, "more": a}])


class Padding(nn.Module):
    """Packs its inputs, and gives as many positions as the longest of a batch has."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(
            x, torch.as_tensor(lengths), batch_first=True, enforce_sorted=False
        )
        return self.out(pad_packed_sequence(self.inner(packed)[0], batch_first=True)[0])


@pytest.mark.parametrize("lengths", [[5, 3, 1, 4, 2, 5], [4, 3, 1, 4, 2, 3]])
@pytest.mark.filterwarnings("ignore:.*holds lengths")
def test_outputs_as_long_as_the_longest(lengths):
    """Refused with advice, which is right."""
    model, x = ready(Padding), torch.randn(6, 5, 4).double()
    batch = {"x": x, "lengths": lengths}
    truth = one_by_one(
        model, range(6), lambda k: model(x[k : k + 1, : lengths[k]], lengths[k : k + 1])
    )
    with pytest.raises(retain.RetainError, match=r"further positions.*padding_mask=") as refused:
        omega(model, [batch])
    advice = "torch.arange(max(lengths)) >= torch.as_tensor(lengths)[:, None]"
    assert advice in str(refused.value)
    padding = eval(advice, {"torch": torch, "lengths": lengths})
    assert_same(omega(model, [batch], padding_mask=lambda _: padding), truth)


# ---- encoder–decoders that are given labels ----


def test_nothing_to_decode_is_said():
    model = ready(encoder_decoder)
    with pytest.raises(
        retain.RetainError, match=r"nothing to decode.*decoder_input_ids, or labels"
    ):
        omega(model, [padded(texts(3, 5), 5)])


def _bart():
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=V, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, pad_token_id=0,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
        forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


@pytest.mark.parametrize("make", [encoder_decoder, _bart], ids=["t5", "bart"])
@pytest.mark.parametrize("width", [7, 12])
def test_labels_are_decoded_and_none_of_them_counts_as_padding(make, width):
    model, asked, answers = ready(make), texts(3, 7, 5), texts(6, 2, 4)
    pairs = list(zip(asked, answers, strict=True))
    truth = one_by_one(
        model, pairs, lambda p: model(input_ids=p[0][None], labels=p[1][None]).logits
    )
    labels = padded(answers, width, filler=-100)["input_ids"]
    batch = padded(asked, width)
    assert_same(omega(model, [batch | {"labels": labels}]), truth, within=1e-8)
    assert_same(omega(model, [(batch, labels)]), truth, within=1e-8)
    zeros = labels.where(labels >= 0, 0)
    with pytest.warns(UserWarning, match="'labels' look padded"):
        omega(model, [batch | {"labels": zeros}])


def test_whisper_is_given_labels():
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        vocab_size=V, num_mel_bins=4, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12,
        decoder_ffn_dim=12, max_source_positions=10, max_target_positions=20, pad_token_id=0,
        bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, use_cache=False,
    )  # fmt: skip
    model = ready(lambda: transformers.WhisperForConditionalGeneration(config))
    model.requires_grad_(True)
    sounds, answers = torch.randn(3, 4, 20).double(), texts(6, 2, 4)
    truth = one_by_one(
        model,
        range(3),
        lambda k: model(input_features=sounds[k : k + 1], labels=answers[k][None]).logits,
    )
    labels = padded(answers, 9, filler=-100)["input_ids"]
    assert_same(omega(model, [{"input_features": sounds, "labels": labels}]), truth, within=1e-8)


# ---- hooks that a forward puts on its tensors ----


class Hooked(nn.Module):
    """A hook on an activation's gradient, which torch refuses where there are no gradients."""

    def __init__(self, hook):
        super().__init__()
        self.one, self.two, self.hook = nn.Linear(5, 6), nn.Linear(6, 3), hook

    def forward(self, x):
        h = torch.tanh(self.one(x))
        if self.hook is None:
            h.retain_grad()
        else:
            h.register_hook(self.hook)
        return self.two(h)


HOOKS = {
    "reversed": lambda g: -g,
    "scaled": lambda g: 0.5 * g,
    "clipped": lambda g: g.clamp(-0.1, 0.1),
    "normed": lambda g: g / (g.norm() + 1e-9),  # over all samples
    "looked at": lambda g: None,
    "kept": None,
}


@pytest.mark.parametrize("size", [1, 12])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_on_activations(name, size):
    model, x = ready(lambda: Hooked(HOOKS[name])), torch.randn(12, 5).double()
    truth = one_by_one(model, list(x), lambda row: model(row[None]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(one sample at a time|each sample in turn)")
        assert_same(omega(model, x.split(size)), truth)


def test_hooks_on_activations_and_the_local_rule():
    x = torch.randn(12, 5).double()
    model, plain = ready(lambda: Hooked(HOOKS["scaled"])), nn.Sequential()
    found = omega(model, [x], retain.LocalMAS)
    plain = nn.Sequential(model.one, nn.Tanh(), model.two)
    expected = omega(plain, [x], retain.LocalMAS)
    assert found["one.weight"].equal(expected["0.weight"])


# ---- signatures ----


def test_a_signature_is_looked_at_once(monkeypatch):
    looked = []
    signature = calls.inspect.signature
    monkeypatch.setattr(
        calls.inspect, "signature", lambda one: looked.append(one) or signature(one)
    )
    a, b = torch.randn(6, 5).double(), torch.randn(6, 4).double()
    for _ in range(2):
        omega(ready(type("Own", (Two,), {"forward": Two.forward})), [(a, b)] * 3)
    assert len(looked) <= 1
