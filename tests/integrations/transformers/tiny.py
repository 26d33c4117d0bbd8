"""Tiny models of many kinds, random and never downloaded, with data and a Trainer for each."""

from __future__ import annotations

import torch
from torch import nn

WORDS, CLASSES, LENGTH = 30, 3, 6
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "num_labels": CLASSES,
}


def sentences(count=12, labels=None):
    """Sentences of different lengths, padded."""
    items = []
    for i in range(count):
        length = LENGTH - i % 3
        ids = torch.randint(1, WORDS, (LENGTH,)) * (torch.arange(LENGTH) < length)
        item = {"input_ids": ids, "attention_mask": (torch.arange(LENGTH) < length).long()}
        items.append(item | ({"labels": labels(i, item)} if labels else {}))
    return items


def sequence_classification():
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**SIZES))
    return model, sentences(labels=lambda i, _: torch.tensor(i % CLASSES))


def token_classification():
    from transformers import DistilBertConfig, DistilBertForTokenClassification

    config = DistilBertConfig(
        vocab_size=WORDS, dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=CLASSES,
        max_position_embeddings=16,
    )  # fmt: skip
    return DistilBertForTokenClassification(config), sentences(
        labels=lambda _, item: item["input_ids"] % CLASSES
    )


def masked_language_model():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**SIZES)), sentences(labels=lambda _, item: item["input_ids"])


def gpt2(**more):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0, **more,
        )
    )  # fmt: skip


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def causal_language_model():
    return gpt2(), sentences(labels=lambda _, item: item["input_ids"])


def vision():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=CLASSES,
    )  # fmt: skip
    items = [
        {"pixel_values": torch.randn(3, 8, 8), "labels": torch.tensor(i % CLASSES)}
        for i in range(12)
    ]
    return ViTForImageClassification(config), items


class SentenceEncoder(nn.Module):
    """Mean pooling over the tokens that count, as sentence encoders end in; trained to norm 1."""

    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertModel

        self.body = BertModel(BertConfig(**SIZES), add_pooling_layer=False)

    def forward(self, input_ids, attention_mask):
        tokens = self.body(input_ids, attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(tokens)
        pooled = (tokens * mask).sum(1) / mask.sum(1)
        return Answer(loss=(pooled.norm(dim=1) - 1).square().mean(), pooled=pooled)


class Answer(dict):
    """A dict with attributes, as the library's own."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def sentence_encoder():
    return SentenceEncoder(), sentences()


KINDS = [
    sequence_classification,
    token_classification,
    masked_language_model,
    causal_language_model,
    vision,
    sentence_encoder,
]


def arguments(folder, **settings):
    from transformers import TrainingArguments

    given = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "log_level": "error",
        "learning_rate": 1e-2,
        **settings,
    }
    return TrainingArguments(str(folder), **given)


def trainer(model, items, folder, *, callbacks=(), kind=None, optimizers=(None, None), **settings):
    from transformers import Trainer

    return (kind or Trainer)(
        model,
        arguments(folder, **settings),
        train_dataset=items,
        eval_dataset=items,
        callbacks=list(callbacks),
        optimizers=optimizers,
    )


def sgd(model, rate=1e-2):
    """An optimizer without a state of its own, and a constant learning rate."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
