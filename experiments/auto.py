"""λ chosen on the new task alone, beside the best of seven values and no protection at all.

    python experiments/auto.py --out DIR [--only digits,permuted,fashion] [--methods a,b]

Three sequences of tasks, a small network with few images, three seeds; three more, with other
seeds, that the rule was not made with (`--only other-digits,other-permuted,fashion-halves`); and
two with networks that come pre-trained (`--only banking77,cifar`). For every method that has a
strength: final accuracy with each of seven strengths around its default, with `auto`, and of
FineTune. The best of seven is picked with the old test data; auto sees no old data at all. Runs
that are there are not run again. Prints the tables of docs/strength.md.

`banking77` needs the data set's folder (`--banking77`, or the variable BANKING77), and the packages
that examples/banking77.py names; `cifar` a folder (`--cifar`) with `animals/` and `vehicles/`, each
with `train/` and `test/` of class folders, and those of examples/efficientnet_lite0.py.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from retain.experiment import Config, Results, run
from retain.methods import METHODS

FACTORS = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0)  # times the default
CHOOSING = ("mas", "ewc", "lwf", "ebll", "si", "imm-mean", "imm-mode", "l2-sp", "kl")
WITHIN = 0.01  # of the best of the seven is what auto should be
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def configs(fashion: str, cifar: str = "cifar10") -> dict[str, Config]:
    """The sequences of tasks, and how they are learned."""
    few = {"methods": ("finetune",), "seeds": (0, 1, 2), "epochs": 3, "batch_size": 16}
    one = Config(tasks="digits", device="cpu", **few)
    given = one.to_json()
    return {
        "digits": one,
        "permuted": Config.from_json({**given, "tasks": "permuted-digits=3"}),
        "fashion": Config.from_json(
            {**given, "tasks": f"fashion-mnist={fashion}", "samples_per_class": 100}
        ),
        **held_back({**given, "seeds": (3, 4, 5)}, fashion),
        **pretrained(given, cifar),
    }


def held_back(given: dict[str, Any], fashion: str) -> dict[str, Config]:
    """The sequences that the rule was not made with."""
    otherwise = {"class_order_seed": 7}
    halves = {"classes_per_task": 5, "samples_per_class": 200, **otherwise}
    changes = {
        "other-digits": {"epochs": 6, **otherwise},
        "other-permuted": {"tasks": "permuted-digits=4", "batch_size": 32, "epochs": 6},
        "fashion-halves": {"tasks": f"fashion-mnist={fashion}", "model": "cnn", **halves},
    }
    return {name: Config.from_json({**given, **change}) for name, change in changes.items()}


def pretrained(given: dict[str, Any], cifar: str) -> dict[str, Config]:
    """The two pairs of tasks of docs/compare.md, whose networks come trained on something else."""
    questions = EXAMPLES / "banking77.py"
    folders = ",".join(f"{name}={Path(cifar) / name}" for name in ("animals", "vehicles"))
    changes = {
        "banking77": {
            "tasks": f"{questions}:tasks",
            "model": f"{questions}:minilm",
            "lr": 2e-4,
            "samples_per_class": 12,
        },
        "cifar": {
            "tasks": f"folders:{folders}",
            "model": f"{EXAMPLES / 'efficientnet_lite0.py'}:pretrained",
            "optimizer": "sgd",
            "lr": 5e-4,
            "epochs": 5,
            "image_size": 64,
            "samples_per_class": 50,
        },
    }
    return {name: Config.from_json({**given, **change}) for name, change in changes.items()}


def swept(config: Config, methods: Sequence[str] = CHOOSING) -> Config:
    """FineTune, and every method with seven strengths."""
    strengths = {m: [f * METHODS[m].Options().strength for f in FACTORS] for m in methods}
    return Config.from_json(
        {**config.to_json(), "methods": ["finetune", *methods], "strengths": strengths}
    )


def chosen(config: Config, methods: Sequence[str] = CHOOSING) -> Config:
    """Every method with the strength that it chooses."""
    return Config.from_json(
        {
            **config.to_json(),
            "methods": list(methods),
            "strengths": {method: ["auto"] for method in methods},
        }
    )


def results(config: Config, folder: Path) -> Results:
    """What the run ends with, which goes on where it was stopped."""
    resume = (folder / "results.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(config, out=folder, resume=resume, progress=False)


def accuracy(results: Results, method: str, strength: float | None = None) -> float:
    """Final accuracy, the mean over seeds."""
    own = [r for r in results.of(method) if strength is None or r.strength == strength]
    return fmean(float(r.measures()["average_accuracy"] or 0) for r in own)


def row(name: str, method: str, sweep: Results, auto: Results) -> str:
    """A line of the table."""
    default = METHODS[method].Options().strength
    tried = {f: accuracy(sweep, method, f * default) for f in FACTORS}
    factor, best = max(tried.items(), key=lambda item: item[1])
    finetune, own = accuracy(sweep, "finetune"), accuracy(auto, method)
    at = {r.seed: r.strength for r in auto.of(method)}
    ended = ", ".join(f"{(value or 0) / default:.3g}" for value in at.values())
    missed = " ✗" if own < best - WITHIN or own < finetune else ""
    return (
        f"| {name} | {method} | {100 * finetune:.1f} | {100 * tried[1.0]:.1f} | {100 * best:.1f} "
        f"({factor:g}) | {100 * own:.1f}{missed} | {ended} |"
    )


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fashion", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--banking77", help="the folder of the data set's files")
    parser.add_argument("--cifar", default="cifar10", help="a folder with animals/ and vehicles/")
    parser.add_argument("--seeds", help="others than the sequence's own")
    parser.add_argument("--only", default="digits,permuted,fashion")
    parser.add_argument("--methods", default=",".join(CHOOSING))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.banking77:
        os.environ["BANKING77"] = asked.banking77  # where examples/banking77.py looks
    methods = asked.methods.split(",")
    print(
        "| tasks | method | FineTune | default | best of 7 (× default) | auto | λ/default at last |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, own in configs(asked.fashion, asked.cifar).items():
        if name in asked.only.split(","):
            seeds = tuple(map(int, asked.seeds.split(","))) if asked.seeds else own.seeds
            config = replace(own, seeds=seeds)
            sweep = results(swept(config, methods), asked.out / f"{name}-sweep")
            auto = results(chosen(config, methods), asked.out / f"{name}-auto")
            for method in methods:
                print(row(name, method, sweep, auto), flush=True)


if __name__ == "__main__":
    main()
