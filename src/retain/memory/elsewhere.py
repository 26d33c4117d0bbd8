"""Optimizers that step none of the held weights, in whose place the held ones may be meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from retain.memory import alarms
from retain.memory.holder import Holder
from retain.memory.lent_gradients import ledger_of
from retain.memory.movement import a_few, alike, elements, spread
from retain.memory.watched import AttachedOptimizer, Said, parameters_of

PATIENCE = 2  # steps elsewhere before a word is said: the first may be another network's


class Elsewhere:
    """Says so, once, if another model or a copy is trained in the place of the held one."""

    def __init__(self, say: Said) -> None:
        self._say = say
        self._seen: WeakKeyDictionary[Optimizer, StepsElsewhere] = WeakKeyDictionary()

    def clear(self) -> None:
        """Held weights are stepped: the others are meant as well."""
        self._seen.clear()

    def steps(
        self,
        memory: Holder,
        optimizer: Optimizer,
        attached: Mapping[Optimizer, AttachedOptimizer],
        *,
        entered: int,
        taken: int,
        held: Iterable[nn.Parameter],
    ) -> None:
        """An optimizer is about to step weights of which none is held.

        Args:
            memory: that holds others.
            optimizer: that steps.
            attached: the optimizers that the memory is attached to.
            entered: how often penalty() has entered a gradient.
            taken: … when it was last accounted for.
            held: the parameters. If they move, what this optimizer steps is copied to them
                (master weights in single precision).
        """
        seen = self._seen.setdefault(optimizer, StepsElsewhere())
        if entered > max(seen.entered, taken):
            # the penalty's gradient is waiting for a step that takes it
            seen.entered, seen.waited = entered, seen.waited + 1
            if seen.follow(held):
                seen.waited = 0
            if seen.waited >= PATIENCE:
                self._say("elsewhere", alarms.elsewhere(memory, optimizer))
            return
        seen.copies = seen.copies or _is_a_copy(optimizer, attached)
        if seen.copies and not ledger_of(optimizer).in_use:  # else a copy of the memory holds it
            seen.steps += 1
            if seen.steps >= PATIENCE:
                self._say("copy", alarms.copied(memory, optimizer))


class StepsElsewhere:
    """What is known of an optimizer that steps none of the held weights."""

    def __init__(self) -> None:
        self.entered = 0  # how often penalty() had entered a gradient when it last stepped
        self.waited = 0  # steps that it made while such a gradient was waiting
        self.copies = False  # whether its weights were a copy of the held ones
        self.steps = 0  # since that was seen
        self._held: list[Tensor] = []

    def follow(self, held: Iterable[nn.Parameter]) -> bool:
        """Whether held weights are others than they were the last time; a few elements tell."""
        before = self._held
        self._held = [elements(p, spread(p)) for p in a_few(list(held))]
        both = zip(before, self._held, strict=False)
        return any(a.device != b.device or not torch.equal(a, b) for a, b in both)


def _is_a_copy(optimizer: Optimizer, attached: Mapping[Optimizer, AttachedOptimizer]) -> bool:
    """Whether it is about to step weights that are, so far, what an idle attached one holds."""
    theirs = parameters_of(optimizer)
    for one, mark in attached.items():
        ours = parameters_of(one)
        if not mark.steps and [p.shape for p in ours] == [p.shape for p in theirs]:
            return all(alike(p, q) for p, q in zip(ours, theirs, strict=True))
    return False
