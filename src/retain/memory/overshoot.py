"""The gradient form of a penalty that is too strong for the steps of its optimizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from retain.memory import alarms
from retain.memory.holder import Holder
from retain.memory.places import Place
from retain.memory.watched import Said
from retain.sharding import is_sharded


class Overshoot:
    """Says so, once, before a step of SGD that throws weights farther than they were off.

    Other optimizers do not step by the size of a gradient, or have a stability of their own.
    """

    def __init__(self, say: Said) -> None:
        self._say = say
        self._largest: dict[str, float] = {}  # of every Ω, the largest element
        self._terms: object = None  # … of these

    def forget(self) -> None:
        """Ω is another: keep none alive that was replaced."""
        self._terms, self._largest = None, {}

    def see(self, memory: Holder, optimizer: Optimizer, ours: Collection[Place]) -> None:
        """The optimizer is about to step `ours`, with the penalty in their gradients."""
        if type(optimizer) is not torch.optim.SGD or "overshoot" in self._say:
            return
        if memory.terms is not self._terms:
            self._terms, self._largest = memory.terms, _largest(memory)
        # θ − θ* ← (1 − 2ηλΩ) (θ − θ*), which grows from step to step if 2ηλΩ > 2
        twice = 2 * memory._weight()
        at_most = twice * max(self._largest.values(), default=0.0)
        for group in optimizer.param_groups:
            most = _most(group)
            if most is None or at_most <= most:
                continue
            names = {id(place.parameter): place.name for place in ours}
            inside = [names[id(p)] for p in group["params"] if id(p) in names]
            far = {n: twice * self._largest.get(n, 0.0) / most for n in inside}
            worst = max(far, key=far.__getitem__, default=None)
            if worst is not None and far[worst] > 1:
                self._say("overshoot", alarms.overshoots(memory, worst, far[worst]))
                return


def _largest(memory: Holder) -> dict[str, float]:
    """Of every parameter's Ω the largest element; of several terms, of the one that has it.

    Each device is waited for once.
    """
    found: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
    for term in memory.terms:
        for name, omega in term.omegas().items():
            if omega.numel() and not is_sharded(omega):
                found.setdefault(omega.device, []).append((name, omega.max().float()))
    largest: dict[str, float] = {}
    for of_device in found.values():
        values = torch.stack([value for _, value in of_device]).tolist()
        for (name, _), value in zip(of_device, values, strict=True):
            largest[name] = max(largest.get(name, 0.0), value)
    return largest


def _most(group: Mapping[str, Any]) -> float | None:
    """The curvature at which steps of a group become unstable; None if it steps nowhere.

    2 (1 + μ) / η for momentum μ, (2 + 2μ) / (1 + 2μ) / η for Nesterov's (μ = 0: 2 / η).
    """
    rate, momentum = group["lr"], float(group.get("momentum", 0.0))
    if isinstance(rate, torch.Tensor) and rate.device.type != "cpu":
        return None  # whose value nobody waits for
    rate = float(rate) * (1 - float(group.get("dampening", 0.0)) if momentum else 1.0)
    if rate <= 0:
        return None
    least = (1 + 2 * momentum) if group.get("nesterov") else 1.0
    return 2 * (1 + momentum) / least / rate
