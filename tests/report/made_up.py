"""Invented results of every kind, shaped like a runner's, for the tests of the report."""

from __future__ import annotations

import random
from typing import Any

METHODS = (
    *("finetune", "joint", "lwf", "ebll", "imm-mean", "imm-mode"),
    *("ewc", "online-ewc", "si", "mas", "local-mas"),
)
TEN_DIGITS = ("0-1", "2-3", "4-5", "6-7", "8-9")
EIGHT = ("flowers", "scenes", "birds", "cars", "aircraft", "actions", "letters", "svhn")
# method: points of accuracy lost per later task, points of plasticity given up, λ, what it keeps
NATURE: dict[str, tuple[float, float, float | None, tuple[str, ...]]] = {
    "finetune": (0.080, 0.000, None, ()),
    "joint": (0.001, 0.002, None, ()),
    "lwf": (0.010, 0.004, 1.0, ("teacher",)),
    "ebll": (0.008, 0.006, 1.0, ("teacher", "encoder")),
    "imm-mean": (0.022, 0.020, None, ("model",)),
    "imm-mode": (0.018, 0.016, None, ("model", "importance")),
    "ewc": (0.014, 0.010, 400.0, ("importance each", "anchor each")),
    "online-ewc": (0.012, 0.009, 400.0, ("importance", "anchor")),
    "si": (0.009, 0.012, 1.0, ("importance", "anchor", "path")),
    "mas": (0.003, 0.008, 1.0, ("importance", "anchor")),
    "local-mas": (0.011, 0.008, 1.0, ("importance", "anchor")),
}
LAYERS = ("backbone.0.weight", "backbone.0.bias", "backbone.2.weight", "backbone.2.bias")


def results(
    methods: tuple[str, ...] | list[str] = ("finetune", "mas", "local-mas"),
    tasks: tuple[str, ...] = TEN_DIGITS,
    seeds: tuple[int, ...] = (0, 1, 2),
    best: float = 0.99,
    **config: Any,
) -> dict[str, Any]:
    """A whole results.json of finished runs."""
    runs = [run(method, tasks, seed, best) for method in methods for seed in seeds]
    return {
        "schema": 1,
        "versions": {"retain": "0.1.0", "torch": "2.14.1", "python": "3.12.4"},
        "config": {
            "title": "",
            "tasks": "digits",
            "model": "mlp",
            "scenario": "task-incremental",
            "methods": list(methods),
            "strengths": {},
            "seeds": list(seeds),
            "epochs": 4,
            "batch_size": 128,
            "lr": 0.001,
            "optimizer": "adam",
            "quick": False,
            **config,
        },
        "runs": runs,
    }


def run(
    method: str,
    tasks: tuple[str, ...] = TEN_DIGITS,
    seed: int = 0,
    best: float = 0.99,
    strength: float | None = None,
) -> dict[str, Any]:
    """One finished run; a larger `strength` than usual forgets less and learns less."""
    dice = random.Random(f"{method} {seed} {strength} {tasks}")
    loses, stiff, usual, keeps = NATURE[method]
    ratio = (strength or usual or 1.0) / (usual or 1.0)
    loses, stiff = loses / (1 + ratio) * 2, stiff * (0.5 + ratio**0.5 / 2)
    learned = [best - stiff * (j > 0) - dice.uniform(0, 0.012) for j in range(len(tasks))]
    accuracy: list[list[float | None]] = []
    for i in range(len(tasks)):
        fallen = [learned[j] - loses * (i - j) * dice.uniform(0.6, 1.4) for j in range(i + 1)]
        bounded = [round(min(max(value, 0.02), 1.0), 4) for value in fallen]
        accuracy.append(bounded + [None] * (len(tasks) - i - 1))
    return {
        "method": method,
        "seed": seed,
        "strength": usual if strength is None else strength,
        "form": "proximal" if keeps and keeps[0].startswith("importance") else None,
        "tasks": list(tasks),
        "accuracy": accuracy,
        "status": "done",
        "error": None,
        **measures(accuracy),
        "train_seconds": round(dice.uniform(3, 9), 2),
        "importance_seconds": round(dice.uniform(0.1, 0.6), 2) if len(keeps) > 1 else 0.0,
        "evaluation_seconds": round(dice.uniform(0.1, 0.3), 2),
        "memory_bytes": memory(keeps, len(tasks)),
        "memory_bytes_by_task": [memory(keeps, k + 1) for k in range(len(tasks))],
        "importance_by_layer": layers(dice) if "importance" in " ".join(keeps) else None,
        "strength_search": None,
    }


def measures(accuracy: list[list[Any]]) -> dict[str, float | None]:
    """The means that the runner would have written beside this matrix."""
    last = len(accuracy) - 1
    kept = [max(accuracy[i][j] for i in range(j, last)) - accuracy[last][j] for j in range(last)]
    moved = [accuracy[last][j] - accuracy[j][j] for j in range(last)]
    return {
        "average_accuracy": sum(accuracy[last]) / (last + 1),
        "average_forgetting": sum(kept) / last if last else None,
        "backward_transfer": sum(moved) / last if last else None,
        "forward_transfer": None,
        "plasticity": sum(accuracy[i][i] for i in range(last + 1)) / (last + 1),
    }


def memory(keeps: tuple[str, ...], tasks: int) -> dict[str, int]:
    """Bytes by kind after `tasks` tasks, for a network of 1.9 MB."""
    model = 1_900_000
    kept = {"model": model + 2_000 * tasks}
    for kind in keeps:
        name = kind.removesuffix(" each")
        times = tasks if kind.endswith("each") or kind == "model" else 1
        each = 60_000 * tasks if kind == "encoder" else model * times
        kept[name] = kept.get(name, 0) + each
    return kept


def layers(dice: random.Random, names: tuple[str, ...] = LAYERS) -> dict[str, dict[str, Any]]:
    """Ω per parameter: log-normal, larger for later layers."""
    means = [dice.uniform(0.5, 2) * 0.01 * 3**k for k in range(len(names))]
    return {
        name: {
            "mean": mean,
            "share": mean / sum(means),
            "quantiles": [mean * q for q in (0, 0.12, 0.45, 1.2, 2.4, 6.5, 15.0)],
        }
        for name, mean in zip(names, means)
    }


def sweep(methods: tuple[str, ...] = ("mas", "ewc", "si")) -> dict[str, Any]:
    """Several strengths of each method, and the two bounds."""
    made = results(("finetune", "joint"))
    for method in methods:
        usual = NATURE[method][2] or 1.0
        for power in (-2, -1, 0, 1, 2):
            made["runs"] += [
                run(method, seed=seed, strength=usual * 10.0**power) for seed in (0, 1, 2)
            ]
    return made


def comparison() -> dict[str, Any]:
    """Thirteen methods, five values of a knob each, with weak ones where fine-tuning is."""
    swept = ("mas", "ewc", "lwf", "l2-sp", "kl")
    knobs = ("low-lr", "freeze", "replay", "lora", "wise-ft")
    made = results(("finetune", "joint"), ("a", "b"), (0, 1), comparison=True)
    for method in (*swept, *knobs, "model-soup"):
        for value in (0.001, 0.01, 0.1, 1.0, 10.0) if method != "model-soup" else (None,):
            for seed in (0, 1):
                dice = random.Random(f"{method} {seed} {value}")
                holds = 0.3 if value is None else value / (0.5 + value)
                new = 0.95 - 0.2 * holds**2 * dice.uniform(0.8, 1.2)
                kept = 0.95 - 0.1 * (1 - holds) * dice.uniform(0.9, 1.1)
                accuracy = [[0.96, None], [round(kept, 4), round(new, 4)]]
                record = run("finetune", ("a", "b"), seed)
                record |= {"method": method, "accuracy": accuracy, **measures(accuracy)}
                record["strength" if method in swept else "knob"] = value
                made["runs"].append(record)
    made["config"]["strengths"] = {name: [0.001, 0.01, 0.1, 1.0, 10.0] for name in swept}
    return made


def unfinished() -> dict[str, Any]:
    """A run of two methods, stopped in the second's third task."""
    made = results(("finetune", "mas"), seeds=(0,))
    stopped = made["runs"][1]
    stopped["status"] = "running"
    stopped["accuracy"] = stopped["accuracy"][:2]
    for name in measures(made["runs"][0]["accuracy"]):
        stopped[name] = None
    return made


def with_failure() -> dict[str, Any]:
    """Three methods, one of which failed in one seed and another in all."""
    made = results(("finetune", "ewc", "mas"), seeds=(0, 1))
    for place in (2, 3, 5):
        failed = made["runs"][place]
        failed.update(
            status="failed",
            accuracy=failed["accuracy"][:1],
            error="NonFiniteError: The loss became NaN in epoch 2 of task 4-5 <script>. "
            "Lower the learning rate or use form=proximal.",
            **dict.fromkeys(measures(made["runs"][0]["accuracy"])),
        )
    return made


def table2() -> dict[str, Any]:
    """The study of the paper's Table 2, a part of it."""
    named = ("finetune", "lwf", "imm-mean", "mas", "local-mas")
    made = results((), study="table2", model="alexnet")
    made["config"]["tasks"] = "birds→scenes, flowers→birds"
    for pair in (("birds", "scenes"), ("flowers", "birds")):
        made["runs"] += [run(method, pair, 0, best=0.56) for method in named]
    return made


def table3() -> dict[str, Any]:
    """The study of the paper's Table 3, on stand-ins."""
    made = results((), study="table3", stand_in="digits", quick=True)
    for method in ("mas", "local-mas"):
        for data in ("train", "test", "train+test"):
            for pair in (("0-4", "5-9"),):
                made["runs"] += [
                    {
                        **run(method, pair, seed, best=0.9 + 0.01 * len(data) / 10),
                        "importance_on": data,
                    }
                    for seed in (0, 1)
                ]
    return made


def table2_in_part() -> dict[str, Any]:
    """Table 2 of which one sequence had no data, one is not begun, and one has altered data."""
    made = table2()
    made["config"] |= {
        "skipped": {"scenes → birds": "MIT Indoor Scenes 67: not found in data."},
        "waiting": ["flowers → scenes"],
        "altered": {"flowers": "3 of 102 classes"},
        "departures": ["epochs 1 (protocol: 100)", "untrained weights"],
        "splits": "The official test set is halved.",
    }
    return made


def memory_study() -> dict[str, Any]:
    """The study of what each method keeps."""
    return results(METHODS[2:], EIGHT, seeds=(0,), study="memory", stand_in="invented sets")


def adaptation_study() -> dict[str, Any]:
    """Ω on all of five classes and on two of them: 0 and 1 stay, the others do not."""
    made = results((), study="adaptation", stand_in="digits", adapt_to=["0", "1"])
    tasks = ("0-1-2-3-4", "5-6-7-8-9")
    for method, classes, finals in (
        ("finetune", [], (0.80, 0.70)),
        ("mas", [], (0.96, 0.95)),
        ("mas", ["0", "1"], (0.98, 0.90)),
    ):
        for seed in (0, 1):
            here, there = (value + 0.01 * seed for value in finals)
            made["runs"].append(
                {
                    **run(method, tasks, seed, strength=1.0),
                    "importance_classes": classes,
                    "accuracy_by_class": {
                        tasks[0]: {"0": here, "1": here, "2": there, "3": there, "4": there}
                    },
                    "accuracy_by_class_learned": {tasks[0]: dict.fromkeys("01234", 0.99)},
                }
            )
    return made


def long_names() -> dict[str, Any]:
    """Names that no layout expects, of tasks, methods and parameters, and markup among them."""
    tasks = ("photographs of flowers taken outdoors", "<b>bold</b> & “quoted” things", "x" * 60)
    made = results(("mas", "finetune"), tasks, seeds=(0,), title="A title that goes on " * 6)
    named = "backbone.features.denseblock3.denselayer24.norm1.weight"
    made["runs"][0]["importance_by_layer"] = layers(
        random.Random(0), tuple(f"{named}.{k}" for k in range(30))
    )
    other = {**run("mas", tasks, 0), "method": "a-method-that-is-not-known-to-this-version"}
    made["runs"].append(other)
    return made
