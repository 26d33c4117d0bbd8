"""What `memory.check()` gives: what is held, what is free, what moved and how far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from retain.memory.attachment import Attachment
from retain.memory.consolidated import holds, now_shaped
from retain.memory.coverage import Coverage, listed
from retain.memory.holder import Holder
from retain.memory.movement import Distance
from retain.parameters import named_parameters, shape_of, summed_in
from retain.penalty import values
from retain.sharding import is_sharded, local, over_shards

LONG = 60  # rows of a table that can still be looked through
HEADINGS = ("parameter", "weights", "state", "mean Ω", "‖θ − θ*‖", "of ‖θ*‖", "optimizer")


@dataclass(frozen=True)
class Checked:
    """One parameter.

    Attributes:
        name: of the parameter.
        weights: how many it has.
        state: "held", "free" (left out by include, exclude or the method), "free, not meant"
            (trained, without importance, and nobody left it out), "frozen", or "gone" (it has
            importance, and the model has it no more, or in another shape).
        why: in words, where "free, not meant" or "gone" has a reason.
        importance: the mean of Ω over tasks, 0 without.
        distance: from θ*; None where nothing is held.
        in_optimizer: whether the optimizer that was asked about has it; None if none was.
    """

    name: str
    weights: int
    state: str
    why: str
    importance: float
    distance: Distance | None
    in_optimizer: bool | None


@dataclass(frozen=True)
class Check:
    """What a memory holds of its model; prints as a table.

    Attributes:
        method: the name of the memory's class.
        strength: λ.
        tasks: how often it was consolidated.
        samples: how many samples were consolidated.
        unconsolidated: how many were observed since.
        attached: whether the optimizer that was asked about is attached; without one, whether any
            is.
        form: in which form; "" if it is not.
        share: of the weights that are trained (by the optimizer, if one was given), how many are
            held, between 0 and 1.
        penalty: λ Σ Ω (θ − θ*)² now.
        distance: of all held weights from θ*.
        moved: held parameters that moved without protection since they were last accounted for.
        rows: parameter by parameter.

    Examples:
        >>> memory = retain.MAS(model).observe(loader).consolidate()
        >>> check = memory.check(optimizer)  # a Check; print it
        >>> check.protected, check.share, check.attached
        (True, 1.0, False)
    """

    method: str
    strength: float
    tasks: int
    samples: int
    unconsolidated: int
    attached: bool
    form: str
    share: float
    penalty: float
    distance: Distance
    moved: tuple[str, ...]
    rows: tuple[Checked, ...]

    @property
    def held(self) -> tuple[str, ...]:
        """Names of what is held.

        Examples:
            >>> memory = retain.MAS(model, exclude="2.*").observe(loader).consolidate()
            >>> check = memory.check(optimizer)
            >>> check.held
            ('0.weight', '0.bias')
        """
        return self._named("held")

    @property
    def free(self) -> tuple[str, ...]:
        """Names of what is trained and meant to be free.

        Examples:
            >>> memory = retain.MAS(model, exclude="2.*").observe(loader).consolidate()
            >>> check = memory.check(optimizer)
            >>> check.free
            ('2.weight', '2.bias')
        """
        return self._named("free")

    @property
    def unheld(self) -> tuple[str, ...]:
        """Names of what is trained and not held, although nobody left it out.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> _ = model.append(nn.Linear(3, 2))  # a new layer, of which nothing was observed
            >>> memory.check().unheld
            ('3.weight', '3.bias')
        """
        return self._named("free, not meant")

    @property
    def gone(self) -> tuple[str, ...]:
        """Names of what has importance and is no longer in the model as it was.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> _ = model.pop(2)
            >>> memory.check().gone
            ('2.weight', '2.bias')
        """
        return self._named("gone")

    @property
    def protected(self) -> bool:
        """Whether there is something to hold, and nothing that should be held is free or gone.

        Examples:
            >>> memory = retain.MAS(model, exclude="2.*").observe(loader).consolidate()
            >>> check = memory.check(optimizer)
            >>> check.protected  # what is free was left out on purpose
            True
        """
        return bool(self.held) and not (self.unheld or self.gone or self.moved)

    def _named(self, state: str) -> tuple[str, ...]:
        return tuple(row.name for row in self.rows if row.state == state)

    def __str__(self) -> str:
        shown = self._shown()
        cells = [HEADINGS, *(_cells(row) for row in shown)]
        if all(row.in_optimizer is None for row in self.rows):
            cells = [row[:-1] for row in cells]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        table = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self._first_line(), *(line.rstrip() for line in table), *self._notes()])

    def _first_line(self) -> str:
        how = f'attached, form="{self.form}"' if self.attached else "not attached"
        return (
            f"{self.method}, λ = {self.strength:g}, {self.tasks} task(s) of {self.samples:,} "
            f"samples, {how}: {100 * self.share:.3g} % of the trained weights are held, penalty "
            f"{self.penalty:.4g}, {self.distance}"
        )

    def _shown(self) -> tuple[Checked, ...]:
        """The rows that are printed, in the order of the model.

        In a long table those that ask for something, and then those that have moved farthest.
        """
        if len(self.rows) <= LONG:
            return self.rows

        def matters(row: Checked) -> tuple[bool, float]:
            asks = row.state in ("free, not meant", "gone") or row.name in self.moved
            return asks, row.distance.moved if row.distance is not None else 0.0

        chosen = {id(row) for row in sorted(self.rows, key=matters, reverse=True)[:LONG]}
        return tuple(row for row in self.rows if id(row) in chosen)

    def _notes(self) -> list[str]:
        notes = []
        left = len(self.rows) - len(self._shown())
        if left:
            notes.append(f"… and {left:,} more, with nothing to report (see .rows).")
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            if row.why:
                reasons.setdefault(row.why, []).append(row.name)
        notes += [f"{listed(names)}: {why}." for why, names in reasons.items()]
        if self.moved:
            notes.append(f"Moved without protection: {listed(self.moved)}.")
        if self.unconsolidated:
            notes.append(f"{self.unconsolidated} samples observed and not yet consolidated.")
        return notes


def checked(
    memory: Holder,
    optimizers: Sequence[Optimizer],
    attachments: Iterable[Attachment],
    moved: tuple[str, ...],
) -> Check:
    """The check of `memory`, of what some optimizers step if there are any.

    Args:
        memory: what is looked at.
        optimizers: whose parameters are told from the others.
        attachments: all that the memory has.
        moved: the parameters that were moved without the memory.
    """
    state, selection = memory._state, memory.selection
    inside = None
    if optimizers:
        inside = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    forms = [
        a.form
        for a in attachments
        if a.attached and (not optimizers or any(a.optimizer is o for o in optimizers))
    ]
    coverage = Coverage.of(memory.model, selection, state, inside)
    every = Coverage.of(memory.model, selection, state).unheld
    omega, anchor, picked = memory.importance, memory.anchor, selection.matching(memory.model)
    parameters = named_parameters(memory.model)
    rows = []
    for name, p in parameters.items():
        fits = name in omega and name in picked and omega[name].shape == shape_of(p)
        if name in omega and name in picked and not fits:
            what, why = "gone", f"it {now_shaped(p, omega[name])}"
        elif not p.requires_grad:
            what, why = "frozen", ""
        elif fits:
            what, why = "held", ""
        elif name in every:
            what, why = "free, not meant", every[name]
        else:
            what, why = "free", ""
        rows.append(
            Checked(
                name,
                0 if shape_of(p) is None else p.numel(),
                what,
                why,
                _mean(omega[name]) if fits else 0.0,
                _distance(p, anchor[name]) if fits else None,
                None if inside is None else id(p) in inside,
            )
        )
    rows += [
        Checked(name, o.numel(), "gone", "the model no longer has it", _mean(o), None, None)
        for name, o in omega.items()
        if name not in parameters and selection.picks(name)
    ]
    return Check(
        method=type(memory).__name__,
        strength=memory.strength,
        tasks=memory.tasks,
        samples=state.samples,
        unconsolidated=state.running.samples if state.running else 0,
        attached=bool(forms),
        form=", ".join(sorted(set(forms))),
        share=coverage.share,
        penalty=_penalty(memory),
        distance=Distance.over(row.distance for row in rows if row.distance is not None),
        moved=moved,
        rows=tuple(rows),
    )


def _penalty(memory: Holder) -> float:
    """The penalty now, as a number, of what still fits the model."""
    shapes = {n: shape_of(p) for n, p in memory.selection.matching(memory.model).items()}
    terms = [
        replace(t, importance={n: o for n, o in t.importance.items() if shapes.get(n) == o.shape})
        for t in memory._state.terms
    ]
    held = holds(memory.model, memory.selection, terms).values()
    with torch.no_grad():
        each = values([local(p) for p, _holds in held], [several for _p, several in held])
        total = sum(float(over_shards(one, p)) for one, (p, _holds) in zip(each, held, strict=True))
    return memory._weight() * total


def _mean(omega: Tensor) -> float:
    """The mean of Ω, over all shards."""
    here = local(omega)
    total = here.sum(dtype=summed_in(here.dtype))
    return float(over_shards(total, omega)) / max(1, omega.numel())


def _distance(p: Tensor, star: Tensor) -> Distance:
    """The distance of a parameter, over all shards."""
    here = Distance.of(p, star)
    if not is_sharded(p):
        return here
    squares = torch.tensor([length**2 for length in here], device=local(p).device)
    return Distance(*over_shards(squares, p).sqrt().tolist())


def _cells(row: Checked) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.weights:,}",
        row.state,
        f"{row.importance:.3g}" if row.distance is not None else "",
        f"{row.distance.moved:.3g}" if row.distance is not None else "",
        row.distance.share if row.distance is not None else "",
        {None: "", True: "yes", False: "no"}[row.in_optimizer],
    )
