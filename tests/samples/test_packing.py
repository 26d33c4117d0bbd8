"""Packed texts: a sample is a text, exactly, or the batch is refused with the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import retain

from .tiny import (
    DECODERS,
    ENCODERS,
    assert_same,
    flattened,
    omega,
    one_by_one,
    padded,
    ready,
    texts,
)


def first(returned):
    return returned.logits if "logits" in returned else returned.last_hidden_state


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_texts_in_one_row_count_as_texts(name):
    model, some = ready(DECODERS[name]), texts(3, 7, 5, 1)
    truth = one_by_one(model, some, lambda text: first(model(input_ids=text[None])))
    packed = omega(model, [flattened(some)])
    assert packed.samples == 4
    assert_same(packed, truth, within=1e-8)
    assert_same(omega(model, [flattened(some[:1]), flattened(some[1:])]), truth, within=1e-8)
    mixed = [flattened(some[:2]), padded(some[2:], 9)]
    assert_same(omega(model, mixed), truth, within=1e-8)
    few = one_by_one(model, some[:2], lambda text: first(model(input_ids=text[None])))
    memory = retain.MAS(model).observe([flattened(some)], max_samples=2, progress=False)
    assert_same(memory.observed, few, within=1e-8)


def test_a_pack_that_looks_padded_at_its_end_is_spoken_of():
    model, some = ready(DECODERS["llama"]), texts(3, 7, 5)
    batch = flattened([*some, *[torch.zeros(1).long()] * 3])
    with pytest.warns(
        UserWarning, match=r"end \(or begin\) in 0 again and again.*a text of its own"
    ):
        omega(model, [batch])


def test_several_rows_of_several_texts():
    model, some = ready(DECODERS["llama"]), texts(3, 7, 5, 5)
    truth = one_by_one(model, some, lambda text: first(model(input_ids=text[None])))
    one, two = flattened(some[:2]), flattened(some[2:])
    rows = {key: torch.cat([one[key], two[key]]) for key in one}
    assert_same(omega(model, [rows]), truth, within=1e-8)
    # the same positions in every row
    same = {"input_ids": torch.stack([torch.cat(texts(4, 3)) for _ in range(2)])}
    same["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    apart = [row[at] for row in same["input_ids"] for at in (slice(0, 4), slice(4, 7))]
    truth = one_by_one(model, apart, lambda text: first(model(input_ids=text[None])))
    assert_same(omega(model, [same]), truth, within=1e-8)


@pytest.mark.parametrize("more", [{"return_flash_attn_kwargs": True, "return_seq_idx": True}, {}])
def test_what_the_collator_of_transformers_gives(more):
    transformers = pytest.importorskip("transformers")
    model, some = ready(DECODERS["llama"]), texts(3, 7, 5)
    truth = one_by_one(model, some, lambda text: first(model(input_ids=text[None])))
    collate = transformers.DataCollatorWithFlattening(return_tensors="pt", **more)
    batch = collate([{"input_ids": text.tolist()} for text in some])
    assert_same(omega(model, [batch]), truth, within=1e-8)


def test_the_fisher_of_packed_texts():
    model, some = ready(DECODERS["gpt2"]), texts(3, 6, 4)
    for more in ({}, {"fisher": "empirical"}):
        pairs = [{"input_ids": t[None], "labels": t[None]} for t in some]
        truth = omega(model, pairs, retain.EWC, **more)
        packed = {**flattened(some), "labels": torch.cat(some)[None]}
        assert_same(omega(model, [packed], retain.EWC, **more), truth, within=1e-8)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_texts_that_see_each_other_are_refused(name):
    """A mask beside restarting positions, or an encoder that does not look at them."""
    model, some = ready((DECODERS | ENCODERS)[name]), texts(3, 7, 5)
    batch = flattened(some)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    with pytest.raises(retain.RetainError, match=r"3 texts are packed.*one text per row"):
        omega(model, [batch])
    ends = torch.tensor([0, 3, 10, 15], dtype=torch.int32)
    with pytest.raises(retain.RetainError, match="packed into 1 row"):
        omega(model, [{"input_ids": batch["input_ids"], "cu_seq_lens_q": ends}])


class Numbered(nn.Module):
    """Attention within the texts that a mask numbers, 0 being padding."""

    def __init__(self, flat=False):
        super().__init__()
        self.embed, self.out = nn.Embedding(31, 6), nn.Linear(6, 4)
        self.flat = flat

    def forward(self, input_ids, attention_mask):
        h = self.embed(input_ids)
        same = attention_mask[:, None] == attention_mask[:, :, None]
        scores = (h @ h.mT).masked_fill(~same, float("-inf"))
        return self.out(scores.softmax(-1) @ h)


def test_masks_that_number_texts():
    model, some = ready(Numbered), texts(3, 2, 4, 1, 4)
    truth = one_by_one(model, some, lambda t: model(t[None], torch.ones(1, len(t)).long()))
    ids = torch.stack([torch.cat([some[0], some[1], torch.zeros(4).long()]), torch.cat(some[2:])])
    mask = torch.tensor([[1, 1, 1, 2, 2, 0, 0, 0, 0], [1, 1, 1, 1, 2, 3, 3, 3, 3]])
    found = omega(model, [{"input_ids": ids, "attention_mask": mask}])
    assert found.samples == 5
    assert_same(found, truth)


class Blocks(nn.Module):
    """Attention by a mask over pairs of positions, as it is or added to the scores."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(31, 6), nn.Linear(6, 4)

    def forward(self, input_ids, attention_mask):
        h = self.embed(input_ids)
        allowed = attention_mask if attention_mask.dtype == torch.bool else attention_mask > -1e3
        scores = (h @ h.mT).masked_fill(~allowed.reshape(-1, *allowed.shape[-2:]), -1e9)
        return self.out(scores.softmax(-1) @ h)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_masks_over_pairs_in_blocks(causal, added):
    model, some = ready(Blocks), texts(3, 2, 4)

    def masked(sizes):
        mask = torch.block_diag(*[torch.ones(n, n) for n in sizes]).bool()
        mask = (mask.tril() if causal else mask)[None]
        mask = mask[:, None] if added else mask
        return torch.zeros(mask.shape).masked_fill(~mask, -1e9) if added else mask

    truth = one_by_one(model, some, lambda t: model(t[None], masked([len(t)])))
    batch = {"input_ids": torch.cat(some)[None], "attention_mask": masked([3, 2, 4])}
    found = omega(model, [batch])
    assert found.samples == 3
    assert_same(found, truth)
    window = torch.ones(1, 9, 9).tril().triu(-1).bool()  # a sliding one is of one text
    assert omega(model, [{**batch, "attention_mask": window}]).samples == 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize(("causal", "added"), [(True, False), (False, True)])
def test_blocks_beside_padding_in_several_rows(side, itself, causal, added):
    """A padded position sees nothing, or itself alone."""
    model, some, width = ready(Blocks), texts(3, 2, 4, 6), 11

    def masked(sizes, width):
        mask = torch.zeros(width, width).bool()
        at = slice(0, sum(sizes)) if side == "right" else slice(width - sum(sizes), width)
        block = torch.block_diag(*[torch.ones(n, n) for n in sizes]).bool()
        mask[at, at] = block.tril() if causal else block
        mask = mask | torch.eye(width).bool() if itself else mask
        return torch.zeros(mask.shape).masked_fill(~mask, -1e9)[None] if added else mask

    truth = one_by_one(model, some, lambda t: model(t[None], masked([len(t)], len(t))[None]))
    ids = padded([torch.cat(some[:3]), some[3]], width, side=side)["input_ids"]
    mask = torch.stack([masked([3, 2, 4], width), masked([6], width)])
    found = omega(model, [{"input_ids": ids, "attention_mask": mask}])
    assert found.samples == 4
    assert_same(found, truth)


def test_a_text_of_one_token_at_the_end_is_no_padding():
    model, some = ready(Blocks), texts(3, 1, 1)
    some[2] = (some[1] - 1) % 29 + 2  # another token than the one before it

    def masked(*sizes):
        return torch.block_diag(*[torch.ones(n, n) for n in sizes]).bool()[None]

    truth = one_by_one(model, some, lambda t: model(t[None], masked(len(t))))
    found = omega(model, [{"input_ids": torch.cat(some)[None], "attention_mask": masked(3, 1, 1)}])
    assert found.samples == 3
    assert_same(found, truth)


class Flat(nn.Module):
    """Rows of all texts in one dimension, as attention of variable length takes them."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(31, 6), nn.Linear(6, 4)

    def forward(self, tokens, cu_seqlens):
        parts = self.embed(tokens).split(cu_seqlens.diff().tolist())
        return self.out(torch.cat([(h @ h.T).softmax(-1) @ h for h in parts]))


def test_cumulated_lengths_of_flat_rows():
    model, some = ready(Flat), texts(3, 2, 4)
    truth = one_by_one(model, some, lambda t: model(t, torch.tensor([0, len(t)])))
    batch = {"tokens": torch.cat(some), "cu_seqlens": torch.tensor([0, 3, 5, 9])}
    assert_same(omega(model, [batch]), truth)
    assert_same(omega(model, [((batch["tokens"], batch["cu_seqlens"]), None)]), truth)


def test_one_text_per_row_is_not_packed():
    """Position ids that restart only at padding, or are the same for all."""
    model, some = ready(DECODERS["gpt2"]), texts(3, 7, 5)
    truth = one_by_one(model, some, lambda text: first(model(input_ids=text[None])))
    for side in ("left", "right"):
        batch = padded(some, 9, side=side, positions=True)
        batch["position_ids"] = batch["position_ids"].masked_fill(batch["attention_mask"] == 0, 1)
        assert omega(model, [batch]).samples == 3
        assert_same(omega(model, [batch]), truth, within=1e-8)
    same = {"input_ids": torch.stack(texts(5, 5)), "position_ids": torch.arange(5)[None]}
    assert omega(model, [same]).samples == 2


def test_positions_go_on_behind_a_hole_in_the_mask():
    """Positions that are left out inside of a text, as in a prompt that was edited, end no text."""
    model, some = ready(DECODERS["gpt2"]), texts(4, 5)
    truth = one_by_one(model, some, lambda text: first(model(input_ids=text[None])))
    batch = {key: torch.zeros(2, 7, dtype=torch.long) for key in ("input_ids", "attention_mask")}
    batch["position_ids"] = torch.zeros(2, 7, dtype=torch.long)
    for row, (text, places) in enumerate(zip(some, ([0, 1, 3, 4], [1, 2, 4, 5, 6]), strict=True)):
        batch["input_ids"][row, places] = text
        batch["attention_mask"][row, places] = 1
        batch["position_ids"][row, places] = torch.arange(len(text))
    found = omega(model, [batch])
    assert found.samples == 2
    assert_same(found, truth, within=1e-8)
