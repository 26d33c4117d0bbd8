"""Does the forecast tell how much is forgotten? Spearman's ρ over many fine-tuning runs.

    python experiments/forecast.py --fashion-mnist ROOT --folders a=PATH,b=PATH --out forecast

One network per data set and seed learns a first task; from there it is fine-tuned on a second one
in many ways (methods × λ × learning rates). Each run gives what was forgotten (points of accuracy
on the first task) and what four predictors said, none of which looks at old data: the expected
change of the output (`memory.drift()`), the penalty Σ Ω (θ − θ*)², the plain distance ‖θ − θ*‖, and
the KL divergence of the old head's outputs on the *new* inputs, before and after. Writes
OUT/forecast.json (a run that was interrupted is taken up again) and prints the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import retain
from retain.models import build_model
from retain.tasks import Task, TaskSequence, load_tasks

PREDICTORS = ("change", "relative", "penalty", "distance", "kl")
NAMES = {
    "change": "Σ Ω \\|Δθ\\|",
    "relative": "the same, relative",
    "penalty": "Σ Ω Δθ²",
    "distance": "‖Δθ‖",
    "kl": "KL on new inputs",
}
RATES = {"sgd": (0.01, 0.03, 0.1), "adam": (3e-4, 1e-3)}
# method and strengths; MAS holds by Ω, L2 all weights alike
WAYS = (("finetune", (0.0,)), ("mas", (0.1, 1.0, 10.0)), ("l2", (1e-3, 1e-2)))
EPOCHS, BATCH = 4, 64


def accuracy(model: nn.Module, head: nn.Module, task: Task) -> float:
    """In percent, of the test split."""
    right = 0
    model.eval()
    with torch.no_grad():
        for batch in task.test.batches(500):
            right += int((head(model(batch.inputs)).argmax(1) == batch.labels).sum())
    return 100 * right / len(task.test)


def learn(
    model: nn.Module,
    head: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    penalty: Any = None,
    epochs: int = EPOCHS,
) -> None:
    """Plain training, with a penalty added to the loss if there is one."""
    order = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for batch in task.train.batches(BATCH, shuffle=order, train=True):
            loss = F.cross_entropy(head(model(batch.inputs)), batch.labels)
            if penalty is not None:
                loss = loss + penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def old_answers(model: nn.Module, head: nn.Module, task: Task) -> Tensor:
    """Log p of the old head for the new task's inputs."""
    model.eval()
    with torch.no_grad():
        parts = [head(model(b.inputs)).log_softmax(1) for b in task.train.batches(500)]
    return torch.cat(parts)


def optimizers(kind: str, rate: float, parameters: Any) -> torch.optim.Optimizer:
    """SGD with momentum, or Adam."""
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    return torch.optim.Adam(parameters, lr=rate)


def runs(name: str, sequence: TaskSequence, model_name: str, seed: int) -> list[dict[str, Any]]:
    """Everything that is tried from one network that has learned the first task."""
    old, new = sequence.tasks[:2]
    network = build_model(model_name, input_shape=sequence.input_shape, seed=seed)
    torch.manual_seed(seed)
    first = network.add_head(len(old.classes))
    model, head = nn.Sequential(network.adapter, network.backbone), network.heads[first]
    both = [*model.parameters(), *head.parameters()]
    learn(model, head, old, torch.optim.Adam(both, lr=1e-3), epochs=8)
    head.requires_grad_(False)
    before, answers = accuracy(model, head, old), old_answers(model, head, new)
    found = []
    for (way, strengths), (kind, rates) in product(WAYS, RATES.items()):
        for strength, rate in product(strengths, rates):
            tuned = copy.deepcopy(model)
            start = [p.detach().clone() for p in tuned.parameters()]
            # Ω of the whole function, the old head included, on the weights that move
            whole = nn.Sequential(tuned, head)
            memory = retain.MAS(whole, strength=strength if way == "mas" else 1.0)
            memory.observe(old.train.batches(500), progress=False).consolidate()
            torch.manual_seed(seed + 1)
            fresh = nn.Linear(network.feature_size, len(new.classes))

            def near(
                tuned: nn.Module = tuned, start: Any = start, weight: float = strength
            ) -> Tensor:
                moved = [(p - q).square().sum() for p, q in zip(tuned.parameters(), start)]
                return weight * torch.stack(moved).sum()

            penalty = {"finetune": None, "mas": memory.penalty, "l2": near}[way]
            optimizer = optimizers(kind, rate, [*tuned.parameters(), *fresh.parameters()])
            learn(tuned, fresh, new, optimizer, penalty=penalty)
            drift = memory.drift()
            now = old_answers(tuned, head, new)
            values = {
                "change": drift.change,
                "relative": drift.relative,
                "penalty": drift.penalty,
                "distance": drift.distance,
                "kl": float((answers.exp() * (answers - now)).sum(1).mean()),
            }
            if not all(torch.isfinite(torch.tensor(list(values.values())))):
                continue  # it diverged
            found.append(
                {
                    "data": name, "seed": seed, "way": way, "strength": strength,
                    "optimizer": kind, "lr": rate, "forgotten": before - accuracy(tuned, head, old),
                    "new": accuracy(tuned, fresh, new), **values,
                }
            )  # fmt: skip
    return found


def table(found: list[dict[str, Any]]) -> str:
    """A row per predictor: ρ with what was forgotten, by data set (over seeds) and over all."""
    sets = list(dict.fromkeys(run["data"] for run in found))
    lines = [
        "| predictor | " + " | ".join(sets) + " | all runs |",
        "|---" * (len(sets) + 2) + "|",
    ]
    for predictor in PREDICTORS:
        cells = []
        for data in sets:
            seeds = sorted({run["seed"] for run in found if run["data"] == data})
            each = [
                rho([r for r in found if (r["data"], r["seed"]) == (data, s)], predictor)
                for s in seeds
            ]
            mean = sum(each) / len(each)
            cells.append(f"{mean:.2f} ({min(each):.2f}–{max(each):.2f})")
        cells.append(f"{rho(found, predictor):.2f}")
        lines.append(f"| {NAMES[predictor]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rho(some: list[dict[str, Any]], predictor: str) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr([r[predictor] for r in some], [r["forgotten"] for r in some])[0])


def asked_for(
    description: str, out: Path
) -> tuple[argparse.Namespace, dict[str, tuple[str, str, dict[str, Any]]]]:
    """What the command line says, and the data sets in it: name -> tasks, network, task options."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fashion-mnist", help="folder with the four IDX files")
    parser.add_argument("--folders", help="two tasks of images, as name=PATH,name=PATH")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=out)
    asked = parser.parse_args()
    sets: dict[str, tuple[str, str, dict[str, Any]]] = {
        "digits": ("digits", "mlp", {"classes_per_task": 5})
    }
    if asked.fashion_mnist:
        own = {"classes_per_task": 5, "samples_per_class": 400}
        sets["Fashion-MNIST"] = (f"fashion-mnist={asked.fashion_mnist}", "mlp", own)
    if asked.folders:
        own = {"image_size": 32, "samples_per_class": 300}
        sets["photographs"] = (f"folders:{asked.folders}", "cnn", own)
    asked.out.mkdir(parents=True, exist_ok=True)
    return asked, sets


def main() -> None:
    """Run what is missing, and print the table."""
    asked, sets = asked_for(__doc__, Path("forecast"))
    file = asked.out / "forecast.json"
    found = json.loads(file.read_text()) if file.exists() else []
    for name, (spec, model, options) in sets.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sequence = load_tasks(spec, **options)
        for seed in range(asked.seeds):
            if any((run["data"], run["seed"]) == (name, seed) for run in found):
                continue
            found += runs(name, sequence, model, seed)
            file.write_text(json.dumps(found, indent=1))
            print(f"{name}, seed {seed}: {len(found)} runs so far", flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
