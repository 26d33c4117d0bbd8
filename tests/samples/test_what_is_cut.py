"""What holds samples is what the output follows, never what has a size by chance; and lists too."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import retain
from retain.errors import InputError

from .tiny import assert_same, omega, one_by_one, padded, ready, texts


class Prompts(nn.Module):
    """Images against prompts that all of them share."""

    def __init__(self):
        super().__init__()
        self.see, self.read = nn.Linear(8, 6), nn.Embedding(31, 6)

    def forward(self, image, text):
        scores = self.see(image) @ self.read(text).mean(1).T
        return (scores.softmax(-1) * torch.arange(len(text))).sum(-1, keepdim=True)


@pytest.mark.parametrize("sizes", [(10,), (8, 10), (10, 8), (1, 10), (10, 1), (3, 10, 12)])
@pytest.mark.parametrize("order", ["image text", "text image", "by position"])
def test_prompts_that_all_images_share(sizes, order):
    model, text = ready(Prompts), torch.randint(31, (10, 4))
    images = [torch.randn(n, 8).double() for n in sizes]
    truth = one_by_one(model, torch.cat(images), lambda image: model(image[None], text))
    if order == "by position":
        batches = [((image, text), None) for image in images]
    else:
        named = [{"image": image, "text": text} for image in images]
        batches = [{name: batch[name] for name in order.split()} for batch in named]
    if sizes[0] == 1 and order == "text image":
        with pytest.raises(retain.RetainError, match=r"shape \(1, 1\) for a batch of 10"):
            omega(model, batches)  # one image, or one output of all prompts together?
        return
    assert_same(omega(model, batches), truth)
    if len(sizes) > 1 and min(sizes) > 2:
        n = sum(sizes) - 4
        few = one_by_one(model, torch.cat(images)[:n], lambda image: model(image[None], text))
        memory = retain.MAS(model).observe(batches, max_samples=n, progress=False)
        assert_same(memory.observed, few)


def test_clip_of_transformers_with_as_many_prompts_as_images():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 31, "max_position_embeddings": 8, "eos_token_id": 30},
        vision_config={**sizes, "image_size": 8, "patch_size": 4},
        projection_dim=6,
    )
    model = ready(lambda: transformers.CLIPModel(config))
    text = {"input_ids": torch.randint(2, 29, (4, 6)), "attention_mask": torch.ones(4, 6).long()}
    pixels = torch.randn(4, 3, 8, 8).double()
    for n in (3, 4):
        truth = one_by_one(
            model, pixels[:n], lambda p: model(**text, pixel_values=p[None]).logits_per_image
        )
        assert_same(omega(model, [{**text, "pixel_values": pixels[:n]}]), truth, within=1e-8)


class Shifted(nn.Module):
    """Inputs without a batch dimension, or with one that all samples share."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 4)

    def forward(self, x, table, scale, shift):
        return self.net(x + shift) @ table * scale


@pytest.mark.parametrize("n", [1, 4, 5])
@pytest.mark.parametrize("order", ["x table scale shift", "shift scale x table"])
def test_inputs_without_a_batch_dimension(n, order):
    model = ready(Shifted)
    given = {
        "x": torch.randn(n, 3, 4).double(),
        "table": torch.randn(4, 4).double(),
        "scale": torch.tensor(2.0).double(),
        "shift": torch.randn(1, 3, 4).double(),
    }
    truth = one_by_one(model, range(n), lambda k: model(**{**given, "x": given["x"][k : k + 1]}))
    assert_same(omega(model, [{name: given[name] for name in order.split()}]), truth)


class Lengths(nn.Module):
    """Speech of several lengths."""

    def __init__(self):
        super().__init__()
        self.net, self.out = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        return self.out(self.net(packed)[1][-1])


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_lists_of_lengths(kind):
    model, x, lengths = ready(Lengths), torch.randn(6, 5, 4).double(), [5, 4, 3, 2, 1, 5]
    truth = one_by_one(model, range(6), lambda k: model(x[k : k + 1], lengths[k : k + 1]))
    assert_same(omega(model, [{"x": x, "lengths": kind(lengths)}]), truth)
    assert_same(omega(model, [((x, kind(lengths)), None)]), truth)


class Pictures(nn.Module):
    """Takes a list of images, which need not be of one size."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, images):
        pooled = [self.conv(image[None]).tanh().mean((2, 3)) for image in images]
        return self.out(torch.cat(pooled))


@pytest.mark.parametrize("heights", [(4, 5, 6, 7), (4, 4, 4), (5, 5, 5, 5, 5), (4,)])
def test_lists_of_images(heights):
    """Also three of them, which have three rows (channels) themselves."""
    model, images = ready(Pictures), [torch.randn(3, h, 5).double() for h in heights]
    truth = one_by_one(model, images, lambda image: model([image]))
    assert_same(omega(model, [{"images": images}]), truth)
    if len(images) > 1:  # a list of one tensor is the input and nothing beside it
        assert_same(omega(model, [images]), truth)
        assert_same(omega(model, [(images, [{}] * len(images))]), truth)


class Levels(nn.Module):
    """Takes a list of features, each of all samples."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, levels):
        return sum(self.net(level) for level in levels)


@pytest.mark.parametrize("n", [3, 5])
def test_lists_of_features(n):
    model, levels = ready(Levels), [torch.randn(n, 4).double() for _ in range(3)]
    truth = one_by_one(model, range(n), lambda k: model([level[k : k + 1] for level in levels]))
    assert_same(omega(model, [{"levels": levels}]), truth)


def test_outputs_that_are_lists_are_refused_with_the_way_out():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 4)

        def forward(self, images):
            return [{"boxes": self.net(image.flatten(1).mean(1))[None]} for image in images]

    images = [torch.randn(3, 4, 4) for _ in range(4)]
    with pytest.raises(retain.RetainError, match=r"batch of 4 samples.*samples_of=.*output="):
        omega(Detector(), [images])


class Whole(nn.Module):
    """Takes one dict, as models of sentence-transformers do, and adds to it."""

    def __init__(self):
        super().__init__()
        self.embed, self.net = nn.Embedding(31, 6), nn.Linear(6, 6)

    def forward(self, features, **kwargs):
        h = self.net(self.embed(features["input_ids"]))
        mask = features["attention_mask"].unsqueeze(-1).to(h.dtype)
        pooled = (h * mask).sum(1) / mask.sum(1)
        features.update({"token_embeddings": h, "sentence_embedding": pooled})
        return features


@pytest.mark.parametrize("wrap", [dict, UserDict, lambda batch: (batch, torch.zeros(3))])
@pytest.mark.parametrize("dtype", [torch.long, torch.float64])
@pytest.mark.parametrize("key", [None, "sentence_embedding"])
def test_a_dict_that_the_model_takes_whole(wrap, dtype, key):
    model, some = ready(Whole), texts(3, 7, 5)
    name = key or "token_embeddings"
    truth = one_by_one(model, some, lambda text: model(padded([text], len(text)))[name])
    pick = None if key is None else lambda returned: returned[key]
    batch = wrap(padded(some, 9, dtype=dtype))
    assert_same(omega(model, [batch], output=pick), truth)
    given = batch[0] if isinstance(batch, tuple) else batch
    assert given.keys() == {"input_ids", "attention_mask"}


def test_an_encoding_of_a_tokenizer_that_the_model_takes_whole():
    transformers = pytest.importorskip("transformers")
    model, some = ready(Whole), texts(3, 7, 5)
    truth = one_by_one(
        model, some, lambda text: model(padded([text], len(text)))["token_embeddings"]
    )
    assert_same(omega(model, [transformers.BatchEncoding(padded(some, 9))]), truth)


@dataclass(frozen=True)
class Record:
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    note: str = "text"


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Whole()

    def forward(self, input_ids, attention_mask, note=None):
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.inner(given)["token_embeddings"]


class Attributes(Keywords):
    def forward(self, batch):
        assert isinstance(batch, Record)
        return super().forward(batch.input_ids, batch.attention_mask)


@pytest.mark.parametrize("make", [Keywords, Attributes])
def test_dataclasses_by_their_fields_or_whole(make):
    model, some = ready(make), texts(3, 7, 5)
    truth = one_by_one(
        model, some, lambda text: model.inner(padded([text], len(text)))["token_embeddings"]
    )
    record = Record(**padded(some, 9), labels=torch.zeros(3))
    assert_same(omega(model, [record]), truth)
    assert_same(omega(model, [(record, torch.zeros(3))]), truth)
    assert record.input_ids.shape == (3, 9)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, image):
        return self.net(image)


def test_columns_that_only_a_loss_looks_at():
    """Not among those that are always labels, and not taken by the model."""
    model, x = ready(Named), torch.randn(5, 4).double()
    truth = one_by_one(model, list(x), lambda one: model(one[None]))
    batch = {"image": x, "target": torch.zeros(5), "name": list("abcde")}
    assert_same(omega(model, [batch]), truth)


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: (b, 0), lambda b: {"x": b}])
def test_ragged_batches_are_refused_with_the_way_out(wrap):
    parts = [torch.randn(3, 4), torch.randn(2, 4)]
    packed = nn.utils.rnn.pack_sequence(parts)
    with pytest.raises(retain.RetainError, match=r"a PackedSequence.*pad_packed_sequence"):
        omega(Named(), [wrap(packed)])
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(parts, layout=layout)
        with pytest.raises(retain.RetainError, match=r"nested tensor.*to_padded_tensor"):
            omega(Named(), [wrap(nested)])


def test_lists_are_cut_with_rows_that_are_no_samples():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, rows, lengths):
            parts = self.net(rows).tanh().split(lengths)
            return torch.cat([p * p.mean(0) for p in parts])

    model, lengths = ready(Split), [3, 1, 4]
    rows = torch.randn(8, 4).double()
    truth = one_by_one(model, rows.split(lengths), lambda own: model(own, [len(own)]))
    owner = torch.repeat_interleave(torch.tensor(lengths))
    found = omega(model, [{"rows": rows, "lengths": lengths}], samples_of=lambda batch: owner)
    assert_same(found, truth)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:.*beta state.*")
def test_sparse_batches_are_refused_with_the_way_out(layout):
    """A matrix that all samples share may be sparse; samples may not."""
    model, x = nn.Linear(5, 3), torch.randn(8, 5)
    with pytest.raises(InputError, match=r"cannot be taken apart.*to_dense\(\)"):
        retain.MAS(model).observe([getattr(x, layout)()], progress=False)
    with pytest.raises(InputError, match=r"to_dense\(\)"):
        retain.LocalMAS(model).observe([getattr(x, layout)()], progress=False)
