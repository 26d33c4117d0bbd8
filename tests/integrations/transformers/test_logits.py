"""Ω by way of ‖logits‖ from d × d matrices is that of the logits themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import retain
from retain.errors import InputError, ModelError
from tests.integrations.transformers import tiny

transformers = pytest.importorskip("transformers")
from retain.integrations.transformers import logits_norm  # noqa: E402

MODELS = {
    "tied": tiny.gpt2,
    "untied": lambda: tiny.gpt2(tie_word_embeddings=False),
    "grouped queries": tiny.llama,
    "masked, with a bias": lambda: tiny.masked_language_model()[0],
}


@pytest.mark.parametrize("kind", MODELS)
def test_importance_equals_that_of_the_logits(kind):
    model = MODELS[kind]().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    batch = {"input_ids": torch.randint(0, tiny.WORDS, (5, 6))}
    expected = retain.MAS(model).observe([batch], progress=False).observed
    found = retain.MAS(model, output=logits_norm(model)).observe([batch], progress=False).observed
    for name, omega in expected.items():
        torch.testing.assert_close(found[name], omega, rtol=1e-9, atol=1e-11, msg=name)
    assert "loop" not in found.routes.values()


def test_nothing_as_large_as_tokens_times_vocabulary():
    words, tokens = 20_000, 64
    config = transformers.GPT2Config(
        vocab_size=words, n_positions=tokens, n_embd=8, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    batch = {"input_ids": torch.randint(0, words, (4, tokens))}
    memory = retain.MAS(model, output=logits_norm(model), check=False)
    memory.observe([batch], progress=False)  # what is made once
    with torch.profiler.profile(profile_memory=True) as seen:
        memory.observe([batch], progress=False)
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert largest < 4 * tokens * words * 4 / 8


def test_the_head_is_itself_again_afterwards():
    model = tiny.gpt2()
    batch = {"input_ids": torch.randint(0, tiny.WORDS, (3, 6))}
    memory = retain.MAS(model, output=logits_norm(model))
    memory.observe([batch], progress=False)
    with pytest.raises(InputError):
        memory.observe([{"input_ids": torch.full((2, 3), 10**6)}], progress=False)
    assert model(**batch).logits.shape == (3, 6, tiny.WORDS)


def test_logits_of_zero_have_no_gradient():
    model = tiny.gpt2(tie_word_embeddings=False)
    nn.init.zeros_(model.lm_head.weight)
    memory = retain.MAS(model, output=logits_norm(model))
    memory.observe([{"input_ids": torch.randint(0, tiny.WORDS, (3, 6))}], progress=False)
    assert all(not omega.any() for omega in memory.observed.values())


def test_padding_does_not_count():
    model = tiny.gpt2().double()
    ids = torch.randint(1, tiny.WORDS, (4, 5))
    more = torch.cat([ids, torch.zeros(4, 2, dtype=ids.dtype)], 1)
    output = logits_norm(model)
    short = retain.MAS(model, output=output).observe(
        [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], progress=False
    )
    padded = retain.MAS(model, output=output).observe(
        [{"input_ids": more, "attention_mask": (more > 0).long()}], progress=False
    )
    for name, omega in short.observed.items():
        torch.testing.assert_close(padded.observed[name], omega)


class Capped(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9)

    def forward(self, ids):
        return 5 * torch.tanh(self.head(self.words(ids)) / 5)


def test_a_head_whose_logits_are_changed_afterwards_is_refused():
    model = tiny.gpt2()
    whole = model.forward

    def scaled(*args, **kwargs):
        returned = whole(*args, **kwargs)
        returned.logits = returned.logits * 0.5
        return returned

    model.forward = scaled
    with pytest.raises(ModelError, match="not those of its head: they are scaled"):
        retain.MAS(model, output=logits_norm(model)).observe(
            [{"input_ids": torch.randint(0, tiny.WORDS, (3, 6))}], progress=False
        )
    capped = Capped()
    nn.init.normal_(capped.head.weight, std=9)
    with pytest.raises(ModelError, match="not those of its head"):
        retain.MAS(capped, output=logits_norm(capped, capped.head)).observe(
            [torch.randint(0, 9, (3, 6))], progress=False
        )


def test_a_model_without_a_linear_head():
    with pytest.raises(ModelError, match=r"Linear has no head.*head="):
        logits_norm(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="a head of type Embedding"):
        logits_norm(nn.Linear(2, 2), nn.Embedding(2, 2))
