"""Repair along its knob, beside WiSE-FT's straight line and beside MAS in training.

    python experiments/repair.py --fashion-mnist ROOT --folders a=PATH,b=PATH --out repair

One network per case and seed learns a first task, is fine-tuned freely on a second, and is then
repaired without training: `retain.repair` for several amounts, WiSE-FT (a weighted mean of the
weights before and after) for several shares. The heads are left alone. Old- and new-task accuracy
in percent, mean over seeds; MAS trained anew from the same start is the mark to reach.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from forecast import accuracy, asked_for, learn  # beside this file
from torch import nn

import retain
from retain.models import build_model
from retain.tasks import TaskSequence, load_tasks

AMOUNTS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SHARES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)
STRENGTHS = (0.1, 1.0, 10.0)


def curves(sequence: TaskSequence, model_name: str, seed: int) -> list[dict[str, Any]]:
    """Every point of one case and seed: way, knob, old and new accuracy."""
    old, new = sequence.tasks[:2]
    network = build_model(model_name, input_shape=sequence.input_shape, seed=seed)
    torch.manual_seed(seed)
    head = network.heads[network.add_head(len(old.classes))]
    base = nn.Sequential(network.adapter, network.backbone)
    both = [*base.parameters(), *head.parameters()]
    learn(base, head, old, torch.optim.Adam(both, lr=1e-3), epochs=8)
    head.requires_grad_(False)

    def tuned(strength: float | None) -> tuple[nn.Module, nn.Module, retain.MAS]:
        body = copy.deepcopy(base)
        memory = retain.MAS(nn.Sequential(body, head), strength=strength or 1.0)
        memory.observe(old.train.batches(500), progress=False).consolidate()
        torch.manual_seed(seed + 1)
        fresh = nn.Linear(network.feature_size, len(new.classes))
        optimizer = torch.optim.Adam([*body.parameters(), *fresh.parameters()], lr=1e-3)
        if strength is not None:
            memory.attach(optimizer, form="adaptive")
        learn(body, fresh, new, optimizer)
        return body, fresh, memory

    def point(way: str, knob: float, body: nn.Module, fresh: nn.Module) -> dict[str, Any]:
        right = {"old": accuracy(body, head, old), "new": accuracy(body, fresh, new)}
        return {"way": way, "knob": knob, "seed": seed, **right}

    body, fresh, memory = tuned(None)
    importance = {n.removeprefix("0."): o for n, o in memory.importance.items()}
    known = retain.Importance(
        {n: o for n, o in importance.items() if n in dict(base.named_parameters())}, 1
    )
    found = [
        point("repair", amount, retain.repair(base, body, known, amount=amount), fresh)
        for amount in AMOUNTS
    ]
    start, end = base.state_dict(), body.state_dict()
    for share in SHARES:
        mixed = copy.deepcopy(body)
        mixed.load_state_dict({n: start[n] + share * (end[n] - start[n]) for n in end})
        found.append(point("WiSE-FT", share, mixed, fresh))
    return found + [point("MAS", held, *tuned(held)[:2]) for held in STRENGTHS]


def main() -> None:
    """Run all, and print a table per case."""
    asked, cases = asked_for(__doc__, Path("repair"))
    everything: dict[str, list[dict[str, Any]]] = {}
    warnings.simplefilter("ignore")
    for name, (spec, model, options) in cases.items():
        sequence = load_tasks(spec, **options)
        everything[name] = [p for seed in range(asked.seeds) for p in curves(sequence, model, seed)]
        (asked.out / "repair.json").write_text(json.dumps(everything, indent=1))
        print(f"\n{name}\n\n| way | knob | old | new |\n|---|---|---|---|")
        for way, knob in dict.fromkeys((p["way"], p["knob"]) for p in everything[name]):
            some = [p for p in everything[name] if (p["way"], p["knob"]) == (way, knob)]
            cells = [f"{mean(p[what] for p in some):.1f}" for what in ("old", "new")]
            print(f"| {way} | {knob:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
