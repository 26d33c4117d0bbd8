"""Padding does not count: Ω of a text is the same however far, and on which side, it was padded."""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace

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
    omega,
    one_by_one,
    padded,
    ready,
    texts,
)

DTYPES = (torch.long, torch.bool, torch.float32, torch.int32)
BOTH = DECODERS | ENCODERS


def cuts(some, chance, **more):
    """The texts in some order, in batches of several sizes and widths."""
    some = chance.sample(some, len(some))
    while some:
        n = chance.randint(1, len(some))
        part, some = some[:n], some[n:]
        width = max(map(len, part)) + chance.choice([0, 1, 9])
        yield padded(part, width, dtype=chance.choice(DTYPES), **more)


@pytest.mark.parametrize("name", BOTH)
def test_width_side_cut_order_and_dtype_of_the_mask_change_nothing(name):
    model, some = ready(BOTH[name]), texts(3, LONGEST, 5, 1)
    truth = one_by_one(model, some, lambda text: first(model(input_ids=text[None])))
    if name == "bert hidden states":
        truth |= {n: torch.zeros_like(t) for n, t in truth.items() if n.startswith("pooler")}
    for seed in range(2):
        for side in ("right", "left"):
            # encoders with relative positions need no position ids
            positions = side == "left" and name != "t5 encoder"
            batches = list(cuts(some, random.Random(seed), side=side, positions=positions))
            assert_same(omega(model, batches), truth, within=1e-8)


def first(returned):
    return returned.logits if "logits" in returned else returned.last_hidden_state


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (retain.MAS, {"score": "norm"}),
        (retain.EWC, {}),
        (retain.EWC, {"fisher": "exact"}),
    ],
    ids=["norm", "sampled", "exact"],
)
def test_other_scores_do_not_see_padding_either(kind, more):
    model, some = ready(BOTH["bert"]), texts(3, 4, 2)
    truth = omega(model, [padded([text], len(text)) for text in some], kind, **more)
    assert_same(omega(model, [padded(some, 6)], kind, **more), truth)
    left = padded(some, 5, side="left", positions=True)
    assert_same(omega(model, [left], kind, **more), truth)


def test_outputs_of_an_encoder_and_decoder_follow_the_decoder():
    model = ready(encoder_decoder)
    asked, answers = texts(3, LONGEST, 5), texts(6, 2, 4)

    def both(questions, replies, width, mask=True):
        batch = padded(questions, width) | padded(replies, width, prefix="decoder_")
        return batch if mask else {k: v for k, v in batch.items() if k != "decoder_attention_mask"}

    pairs = list(zip(asked, answers, strict=True))
    truth = one_by_one(
        model, pairs, lambda p: model(input_ids=p[0][None], decoder_input_ids=p[1][None]).logits
    )
    assert_same(omega(model, [both(asked, answers, LONGEST)]), truth, within=1e-8)
    assert_same(omega(model, [both(asked, answers, 11)]), truth, within=1e-8)
    # without a mask of its own nothing of the decoder's is left out, whatever the encoder's says
    counted = one_by_one(
        model,
        range(3),
        lambda k: (
            model(
                **{n: t[k : k + 1] for n, t in both(asked, answers, LONGEST, mask=False).items()}
            ).logits
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = omega(model, [both(asked, answers, LONGEST, mask=False)])
    assert_same(found, counted, within=1e-8)


def test_a_decoder_without_a_mask_is_spoken_of_only_if_it_looks_padded():
    model, asked = ready(encoder_decoder), texts(3, LONGEST, 5)

    def batch(answers):
        ids = padded(answers, max(map(len, answers)))["input_ids"]
        return padded(asked, 9) | {"decoder_input_ids": nn.functional.pad(ids, (1, 0))}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        omega(model, [batch(texts(4, 4, 4))])
    with pytest.warns(UserWarning, match="'decoder_input_ids' look padded.*decoder_attention_mask"):
        omega(model, [batch(texts(6, 2, 4))])


def test_states_of_the_encoder_follow_the_encoder():
    model = ready(encoder_decoder)
    asked, answers = texts(3, LONGEST, 5), texts(6, 2, LONGEST)
    batch = padded(asked, LONGEST) | padded(answers, LONGEST, prefix="decoder_")
    found = omega(model, [batch], output=lambda returned: returned.encoder_last_hidden_state)
    truth = one_by_one(
        model, asked, lambda text: model.encoder(input_ids=text[None]).last_hidden_state
    )
    assert_same(found, truth, within=1e-8)


class Layer(nn.Module):
    """A torch.nn encoder, whose mask says what is left out."""

    def __init__(self, fill=None):
        super().__init__()
        self.embed = nn.Embedding(31, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.fill = fill

    def forward(self, tokens, src_key_padding_mask=None):
        out = self.layer(self.embed(tokens), src_key_padding_mask=src_key_padding_mask)
        if self.fill is not None and src_key_padding_mask is not None:
            out = out.masked_fill(src_key_padding_mask[..., None], self.fill)
        return out


class Own(nn.Module):
    """A model with a mask of its own."""

    def __init__(self):
        super().__init__()
        self.inner = Layer()

    def forward(self, tokens, is_padding):
        return self.inner(tokens, src_key_padding_mask=is_padding)


@pytest.mark.parametrize("fill", [None, float("nan"), float("-inf")])
def test_key_padding_masks_say_what_is_left_out(fill):
    """NaN and infinity at padded positions are not looked at."""
    model, some = ready(lambda: Layer(fill)), texts(3, LONGEST, 5)
    truth = one_by_one(model, some, lambda text: model(text[None]))
    for width in (LONGEST, 12):
        batch = padded(some, width)
        left_out = batch["attention_mask"] == 0
        kwargs = {"tokens": batch["input_ids"], "src_key_padding_mask": left_out}
        assert_same(omega(model, [kwargs]), truth)
        assert_same(omega(model, [((batch["input_ids"], left_out), None)]), truth)  # by position


def test_a_mask_that_only_the_user_knows():
    model, some = ready(Own), texts(3, LONGEST, 5)
    truth = one_by_one(model, some, lambda text: model.inner(text[None]))
    batch = padded(some, 12)
    given = {"tokens": batch["input_ids"], "is_padding": batch["attention_mask"] == 0}
    assert_same(omega(model, [given], padding_mask="is_padding"), truth)
    assert_same(omega(model, [given], padding_mask=lambda b: b["tokens"] == 0), truth)
    with pytest.raises(retain.RetainError, match="True where there is padding"):
        omega(model, [given | {"tokens": given["tokens"]}], padding_mask=lambda b: b["tokens"])
    with pytest.raises(retain.RetainError, match=r"padding_mask='mask' is no input.*is_padding"):
        omega(model, [given], padding_mask="mask")


def test_a_column_for_the_mask_alone_is_not_given_to_the_model():
    model, some = ready(Layer), texts(3, LONGEST, 5)
    truth = one_by_one(model, some, lambda text: model(text[None]))

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, tokens):
            return self.inner(tokens, tokens == 0)

    batch = padded(some, 12)
    given = {"tokens": batch["input_ids"], "pads": batch["attention_mask"] == 0}
    found = omega(Plain(), [given], padding_mask="pads")
    assert_same({name.removeprefix("inner."): t for name, t in found.items()}, truth)


def test_a_mask_that_the_model_does_not_take_counts_all_the_same():
    """A tokenizer gives it, and the model looks at each token by itself."""

    class EachAlone(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(31, 6), nn.Linear(6, 3)

        def forward(self, input_ids):
            return self.out(torch.tanh(self.embed(input_ids)))

    model, some = ready(EachAlone), texts(3, LONGEST, 5)
    truth = one_by_one(model, some, lambda text: model(text[None]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width in (LONGEST, 12):
            assert_same(omega(model, [padded(some, width)]), truth)
            batch = padded(some, width), torch.zeros(3)
            assert_same(omega(model, [batch]), truth)


@pytest.mark.parametrize("strict", [False, True])
def test_a_mask_may_be_looked_for_in_keyword_arguments(strict):
    """Without it the model would see padding, and say nothing."""
    model, some = ready(Layer), texts(3, LONGEST, 5)
    truth = one_by_one(model, some, lambda text: model(text[None]))

    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, tokens, **more):
            if strict:  # does not know it, after all
                return self.inner(tokens, tokens == 0, **more)
            return self.inner(tokens, more.get("pads"))

    batch = padded(some, 12)
    given = {"tokens": batch["input_ids"], "pads": batch["attention_mask"] == 0}
    found = omega(Loose(), [given], padding_mask="pads")
    assert_same({name.removeprefix("inner."): t for name, t in found.items()}, truth)


def test_masks_over_pairs_of_positions():
    """Additive, [n, 1, T, T], as transformers makes them inside; also of queries that see all."""
    model, some = ready(DECODERS["gpt2"]), texts(3, LONGEST, 5)
    truth = one_by_one(model, some, lambda text: model(input_ids=text[None]).logits)
    for side in ("right", "left"):
        batch = padded(some, 10, side=side, positions=True)
        keys = batch["attention_mask"].bool()[:, None, None]
        allowed = torch.ones(10, 10).tril().bool() & keys
        unmasked = allowed | ~allowed.any(-1, keepdim=True)
        for pairs in (allowed if side == "right" else unmasked, unmasked):
            additive = torch.zeros(pairs.shape).double().masked_fill(~pairs, -1e9)
            given = {**batch, "attention_mask": additive}
            assert_same(omega(model, [given]), truth, within=1e-7)


def test_pooled_outputs_and_images_are_left_alone():
    transformers = pytest.importorskip("transformers")
    vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
            image_size=8, patch_size=4, num_labels=3,
        )
    ).double().eval()  # fmt: skip
    images = torch.randn(3, 3, 8, 8).double()
    truth = one_by_one(vit, list(images), lambda image: vit(pixel_values=image[None]).logits)
    assert_same(omega(vit, [{"pixel_values": images}]), truth)

    class Pooled(nn.Module):
        """A pooled output of as many features as there are positions."""

        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(31, 8), nn.Linear(8, 10)

        def forward(self, input_ids, attention_mask):
            weights = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
            return self.out((self.embed(input_ids) * weights).sum(1))

    model, some = ready(Pooled), texts(3, LONGEST, 5)
    ones = torch.ones(1, LONGEST).double()
    truth = one_by_one(model, some, lambda text: model(text[None], ones[:, : len(text)]))
    assert_same(omega(model, [padded(some, 10, dtype=torch.float64)]), truth)


@pytest.mark.parametrize("choices", [2, 6])
def test_several_texts_of_a_sample_have_a_mask_each(choices):
    """[n, choices, T] is no mask over pairs of positions, also with as many choices as positions.

    The output has a number for each choice, and nothing of it is padding.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12,
    )  # fmt: skip
    model = transformers.BertForMultipleChoice(config).double().eval()
    ids, mask = torch.randint(1, 31, (3, choices, 6)), torch.ones(3, choices, 6, dtype=torch.long)
    mask[:, :, 4:], mask[1, 1, 2:] = 0, 0
    truth = one_by_one(model, range(3), lambda k: model(ids[[k]], attention_mask=mask[[k]]).logits)
    assert_same(omega(model, [{"input_ids": ids, "attention_mask": mask}]), truth)


def test_logits_of_spans_are_per_position():
    transformers = pytest.importorskip("transformers")
    make = lambda: transformers.BertForQuestionAnswering(  # noqa: E731
        transformers.BertConfig(
            vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=12, max_position_embeddings=32,
        )
    )  # fmt: skip
    model, some = ready(make), texts(3, LONGEST, 5)
    truth = one_by_one(model, some, lambda text: model(input_ids=text[None]).start_logits)
    assert_same(omega(model, [padded(some, 12)]), truth)


class Values(nn.Module):
    """One number for every position, as reward models and critics give."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(31, 6), nn.Linear(6, 1)

    def forward(self, input_ids, attention_mask):
        return self.out(self.embed(input_ids).tanh()).squeeze(-1)


def test_one_number_per_position_is_told_from_pooled_features():
    model, some = ready(Values), texts(3, LONGEST, 5)
    truth = one_by_one(model, some, lambda text: model(text[None], None))
    for batches in ([padded(some, 12)], [padded([text], 9) for text in some]):
        assert_same(omega(model, batches), truth)


class Halved(nn.Module):
    """Half as many positions, as of speech."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(31, 6), nn.Linear(12, 3)

    def forward(self, input_ids, attention_mask):
        h = self.embed(input_ids)
        return self.out(h.reshape(len(h), -1, 12))


def test_positions_that_no_mask_is_of_are_spoken_of_once():
    model, some = ready(Halved), texts(4, 8, 6)
    batch = padded(some, 10)
    with pytest.warns(UserWarning, match=r"\(3, 5, 3\) has other.*padding_mask=.*\[3, 5\]"):
        omega(model, [batch])
    half = lambda batch: batch["attention_mask"][:, ::2] == 0  # noqa: E731
    truth = one_by_one(model, some, lambda text: model(text[None], None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(omega(model, [batch], padding_mask=half), truth)
        omega(model, [padded(texts(4, 4), 4)])


class InARow(nn.Module):
    """Three numbers for each position, all in one row."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(31, 6), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        return self.out(torch.tanh(self.embed(input_ids))).flatten(1)


def test_positions_in_one_row_are_spoken_of():
    model, some = ready(InARow), texts(4, 8, 6)
    batch = padded(some, 10)
    with pytest.warns(
        UserWarning, match=r"\(3, 30\) has all .* one row.*unflatten\(1, \(10, 3\)\)"
    ):
        omega(model, [batch])
    truth = one_by_one(model, some, lambda text: model(text[None], None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = omega(model, [batch], output=lambda returned: returned.unflatten(1, (10, 3)))
        omega(model, [padded(texts(4, 4), 4)])
    assert_same(found, truth)


def warned(model, batches):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        omega(model, batches)
    return [str(w.message) for w in caught if "padded" in str(w.message)]


def test_what_looks_padded_without_a_mask_is_said_once():
    model, some = ready(DECODERS["gpt2"]), texts(3, LONGEST, 5)
    for side in ("right", "left"):
        batch = padded(some, 9, side=side)
        (message,) = warned(model, [{"input_ids": batch["input_ids"]}] * 2)
        assert "input_ids" in message
        assert "attention_mask" in message
        assert "padding_mask" in message
        assert not warned(model, [batch])
    assert not warned(model, [torch.stack(texts(6, 6, 6))])
    assert not warned(model, [torch.cat([torch.stack(texts(6, 6)), torch.ones(2, 1).long()], 1)])


class Frames(nn.Module):
    """Frames of sounds, with something that says how long each of them is."""

    def __init__(self, pooled=False):
        super().__init__()
        self.inner, self.out, self.pooled = nn.Linear(3, 6), nn.Linear(6, 2), pooled

    def forward(self, frames, **more):
        h = torch.tanh(self.inner(frames))
        for value in more.values():
            kept = torch.as_tensor(value)
            if kept.ndim == 1:
                kept = torch.arange(frames.shape[1]) < kept[:, None]
            h = h * kept[..., None]
        return self.out(h.sum(1) if self.pooled else h)


LENGTHS = [6, 3, 2]
KEPT = torch.arange(6) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize(
    "more",
    [
        {"mask": KEPT},
        {"frame_mask": KEPT.double()},
        {"valid": KEPT.long()},
        {"lengths": LENGTHS},
        {"frame_lens": torch.tensor(LENGTHS)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_masks_and_lengths_of_unknown_names_are_spoken_of(more):
    """If the output has positions; and what the message advises is right."""
    batch = {"frames": torch.randn(3, 6, 3).double() * KEPT[..., None], **more}
    model, (name,) = ready(Frames), more
    (message,) = warned(model, [batch] * 2)
    assert f"'{name}'" in message
    advice = message.split("padding_mask=")[1].split(" (or")[0].removesuffix(".")
    said = eval(advice, {"torch": torch}) if "== 0" not in advice else lambda b: b[name] == 0
    truth = one_by_one(model, range(3), lambda k: model(batch["frames"][k : k + 1, : LENGTHS[k]]))
    assert_same(omega(model, [batch], padding_mask=said), truth)
    assert not warned(ready(lambda: Frames(pooled=True)), [batch])


def test_frames_that_look_padded_are_spoken_of():
    frames = torch.randn(3, 6, 3).double()
    assert not warned(ready(Frames), [frames])
    for filler in (0.0, -11.5):
        (message,) = warned(ready(Frames), [frames.where(KEPT[..., None], filler)])
        assert "end (or begin) in one and the same frame" in message
    sounds = nn.Sequential(nn.Unflatten(1, (1, 20)), nn.Conv1d(1, 2, 3))
    kept = torch.arange(20) < torch.tensor([[20], [15], [11]])
    assert not warned(ready(lambda: sounds), [torch.randn(3, 20).double()])
    assert warned(ready(lambda: sounds), [torch.randn(3, 20).double() * kept])


def test_a_mask_that_leaves_out_everything_is_refused():
    model, some = ready(DECODERS["gpt2"]), texts(3, 4)
    batch = padded(some, 5)
    with pytest.raises(retain.RetainError, match="leaves out every position"):
        omega(model, [{**batch, "attention_mask": torch.zeros(2, 5).long()}])


def test_a_mask_that_does_not_fit_the_output_is_ignored():
    model = ready(DECODERS["gpt2"])
    some = texts(4, 4)
    batch = padded(some, 4)
    longer = lambda returned: torch.cat([returned.logits] * 2, 1)  # noqa: E731
    truth = one_by_one(
        model, some, lambda text: longer(SimpleNamespace(logits=model(text[None]).logits))
    )
    assert_same(omega(model, [batch], output=longer), truth)


@pytest.mark.parametrize("width", [10, 31, 2 * LONGEST])
def test_positions_in_another_dimension(width):
    """[n, V, T], as criterions want it, and all layers at once; also where sizes are the same."""
    model, some = ready(DECODERS["gpt2"]), texts(3, LONGEST, 5)
    model.config.output_hidden_states = True
    for pick in (
        lambda returned: returned.logits.mT,
        lambda returned: torch.stack(returned.hidden_states * (width // 3 + 1), 1)[:, :width],
    ):
        truth = one_by_one(model, some, lambda text, pick=pick: pick(model(text[None])))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = omega(model, [padded(some, width)] * 2, output=pick)
        assert_same(found, truth, within=1e-8)
