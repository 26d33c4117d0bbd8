"""Ω does not depend on how texts were batched: width and side of padding, cut, order, mask, pack.

Drawn at random, for a decoder, an encoder, an encoder–decoder and a model of images.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from .tiny import (
    DECODERS,
    ENCODERS,
    assert_same,
    encoder_decoder,
    flattened,
    omega,
    one_by_one,
    padded,
    ready,
    texts,
)

CASES = 4  # drawn for each


def additive(mask):
    """The mask as it is added to the scores of an attention: [n, 1, 1, T]-like, for every query."""
    return torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)


def over_pairs(mask, *, causal):
    """[n, 1, T, T] of bools: who looks at whom."""
    width = mask.shape[1]
    looks = mask.bool()[:, None, None] & torch.ones(width, width).bool()
    return looks.tril() if causal else looks


MASKS = {
    "bool": lambda mask, causal: mask.bool(),
    "int": lambda mask, causal: mask.int(),
    "float": lambda mask, causal: mask.double(),
    "over pairs": lambda mask, causal: over_pairs(mask, causal=causal),
    "added over pairs": lambda mask, causal: additive(over_pairs(mask, causal=causal)).double(),
}


def batches(some, chance, *, sides, forms, causal, prefix="", filler=0):
    """The texts in some order, cut somewhere, each batch padded and masked in some way."""
    some = chance.sample(some, len(some))
    while some:
        count = chance.randint(1, len(some))
        part, some = some[:count], some[count:]
        width, side = max(map(len, part)) + chance.choice([0, 1, 6]), chance.choice(sides)
        batch = padded(part, width, side=side, positions=side == "left", filler=filler)
        form = chance.choice(forms)
        batch["attention_mask"] = MASKS[form](batch["attention_mask"], causal)
        yield batch


@pytest.mark.parametrize("seed", range(CASES))
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5 encoder"])
def test_texts(name, seed):
    model, some = ready((DECODERS | ENCODERS)[name]), texts(3, 7, 5, 1)
    call = lambda text: model(input_ids=text[None])[0]  # noqa: E731
    truth = one_by_one(model, some, call)
    chance, causal = random.Random(seed), name in DECODERS
    sides = ["right"] if name == "t5 encoder" else ["right", "left"]
    forms = list(MASKS) if name != "t5 encoder" else ["bool", "int", "float"]
    found = list(batches(some, chance, sides=sides, forms=forms, causal=causal))
    if name == "llama" and seed % 2:
        found = [
            flattened(some[:2]),
            *batches(some[2:], chance, sides=sides, forms=forms, causal=True),
        ]
    assert_same(omega(model, found), truth, within=1e-7)


@pytest.mark.parametrize("seed", range(CASES))
@pytest.mark.parametrize("given", ["decoder_input_ids", "labels"])
def test_pairs_of_texts(given, seed):
    model, chance = ready(encoder_decoder), random.Random(seed)
    pairs = list(zip(texts(3, 7, 5, 2), texts(4, 2, 6, 1), strict=True))
    truth = one_by_one(
        model, pairs, lambda p: model(input_ids=p[0][None], **{given: p[1][None]}).logits
    )
    some, found = chance.sample(pairs, len(pairs)), []
    while some:
        count = chance.randint(1, len(some))
        part, some = some[:count], some[count:]
        asked, answers = zip(*part, strict=True)
        batch = padded(list(asked), 7 + chance.choice([0, 1, 6]))
        form = chance.choice(["bool", "int", "float"])
        batch["attention_mask"] = MASKS[form](batch["attention_mask"], False)
        filler = -100 if given == "labels" else 0
        decoded = padded(list(answers), 6 + chance.choice([0, 1, 6]), filler=filler)
        batch[given] = decoded["input_ids"]
        if given != "labels":
            batch["decoder_attention_mask"] = MASKS[form](decoded["attention_mask"], False)
        found.append(batch)
    assert_same(omega(model, found), truth, within=1e-8)


def _vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        image_size=8, patch_size=4, num_channels=3, num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize("seed", range(CASES))
def test_images(seed):
    model, images = ready(_vit), torch.randn(7, 3, 8, 8).double()
    truth = one_by_one(model, list(images), lambda image: model(pixel_values=image[None]).logits)
    chance, order = random.Random(seed), torch.randperm(7)
    cuts = sorted(chance.sample(range(1, 7), chance.randint(0, 3)))
    parts = images[order].tensor_split(cuts)
    kinds = (lambda x: x, lambda x: {"pixel_values": x}, lambda x: (x, torch.arange(len(x))))
    kind = chance.choice(kinds)
    assert_same(omega(model, [kind(part) for part in parts]), truth, within=1e-8)


class Boxes(nn.Module):
    """Attention of patches of images that are smaller than others, with torch.nn's mask."""

    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, patches, key_padding_mask=None):
        return self.out(self.attention(patches, patches, patches, key_padding_mask)[0])


@pytest.mark.parametrize("seed", range(CASES))
def test_patches_beside_padding(seed):
    model, chance = ready(Boxes), random.Random(seed)
    some = [torch.randn(n, 4).double() for n in (3, 6, 1, 4)]
    truth = one_by_one(model, some, lambda patches: model(patches[None]))
    some, found = chance.sample(some, len(some)), []
    while some:
        count = chance.randint(1, len(some))
        part, some = some[:count], some[count:]
        width = max(map(len, part)) + chance.choice([0, 2])
        patches, left_out = torch.zeros(count, width, 4).double(), torch.ones(count, width).bool()
        for k, one in enumerate(part):
            at = slice(0, len(one)) if chance.random() < 0.5 else slice(width - len(one), width)
            patches[k, at], left_out[k, at] = one, False
        if chance.random() < 0.5:
            left_out = torch.zeros(count, width).double().masked_fill(left_out, -torch.inf)
        found.append({"patches": patches, "key_padding_mask": left_out})
    assert_same(omega(model, found), truth, within=1e-8)
