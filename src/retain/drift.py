"""Drift: how far weights went from θ*, counted by how much the output depends on them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retain.sharding import whole

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 20  # parameters in the table; the others are one row
PIECE = 1 << 20  # elements that are looked at together, in double precision


@dataclass(frozen=True)
class ParameterDrift:
    """One parameter: its part of the expected change, its share of all, and how far it went.

    Examples:
        >>> memory = retain.MAS(model).observe(loader).consolidate()
        >>> memory.drift().parameters["0.weight"]  # a ParameterDrift; nothing has moved
        ParameterDrift(change=0.0, share=0.0, distance=0.0)
    """

    change: float
    share: float
    distance: float


@dataclass(frozen=True)
class Drift:
    """The change of the output that is to be expected from weights away from θ*.

    Attributes:
        change: Σ Ω |θ − θ*|: to first order, what ‖F(x)‖² changes by at most, on average over the
            observed data.
        relative: the same as a share of Σ Ω |θ*|, what all the weights together account for; does
            not depend on the scale of the outputs or the number of tasks.
        of_output: the same as a share of the mean ‖F(x)‖² over the observed data; None where that
            was not recorded (the local rule, SI, older files).
        penalty: Σ Ω (θ − θ*)², without λ.
        distance: ‖θ − θ*‖₂ over the weights that have importance.
        parameters: name -> its part, the largest first.

    Examples:
        >>> omega, star = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}
        >>> drift = retain.drift.Drift.of(omega, star, {"w": torch.tensor([1.5, 9.0])})
        >>> drift.change, drift.relative, drift.penalty
        (1.0, 0.5, 0.5)
    """

    change: float
    relative: float
    penalty: float
    distance: float
    parameters: Mapping[str, ParameterDrift]
    of_output: float | None = None

    @classmethod
    def of(
        cls,
        importance: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        squared_norm: float | None = None,
    ) -> Drift:
        """The drift of `weights` from `anchor`; all are name -> tensor of the same shapes.

        `squared_norm` is the mean ‖F(x)‖² that goes with the importance, if known.

        Examples:
            >>> memory = retain.MAS(model).observe(loader).consolidate()
            >>> half = {name: 0.5 * star for name, star in memory.anchor.items()}
            >>> drift = retain.drift.Drift.of(memory.importance, memory.anchor, half)
            >>> round(drift.relative, 4)  # every weight lost half of itself
            0.5
        """
        changes: dict[str, tuple[float, float]] = {}
        all_of_it = penalty = 0.0
        for name, omega in importance.items():
            change = square = 0.0
            for o, star, d in _pieces(omega, anchor[name], weights[name]):
                # E|‖F(x; θ)‖² − ‖F(x; θ*)‖²| ≤ Σ Ω |θ − θ*| + O(‖θ − θ*‖²)
                change += float((o * d.abs()).sum())
                penalty += float((o * d.square()).sum())  # Σ Ω (θ − θ*)²   (MAS, eq. 3)
                square += float(d.square().sum())
                all_of_it += float((o * star.abs()).sum())
            changes[name] = change, square**0.5
        total = sum(change for change, _ in changes.values())
        parts = {
            name: ParameterDrift(change, change / total if total else 0.0, far)
            for name, (change, far) in sorted(changes.items(), key=lambda one: -one[1][0])
        }
        far = sum(distance**2 for _, distance in changes.values()) ** 0.5
        relative = total / all_of_it if all_of_it else 0.0
        of_output = total / squared_norm if squared_norm else None
        return cls(total, relative, penalty, far, parts, of_output)

    def __rich__(self) -> Table:
        from rich.table import Table

        known = self.of_output
        title = (
            f"Expected change of ‖F‖²: up to {self.change:.3g}, "
            + (f"{100 * known:.3g} % of its mean and " if known is not None else "")
            + f"{100 * self.relative:.3g} % of what the weights account for; "
            f"‖θ − θ*‖ = {self.distance:.3g}"
        )
        table = Table(title=title, title_justify="left")
        table.add_column("parameter", overflow="fold")
        for heading in ("change", "share", "‖θ − θ*‖"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, own in list(self.parameters.items())[:SHOWN]:
            share = f"{100 * own.share:.1f} %"
            table.add_row(name, f"{own.change:.3g}", share, f"{own.distance:.3g}")
        rest = list(self.parameters.values())[SHOWN:]
        if rest:
            change, part = sum(p.change for p in rest), 100 * sum(p.share for p in rest)
            far = sum(p.distance**2 for p in rest) ** 0.5
            table.add_row(f"{len(rest)} others", f"{change:.3g}", f"{part:.1f} %", f"{far:.3g}")
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=100)
        console.print(self)
        written: str = console.file.getvalue()  # type: ignore[attr-defined]
        return written.rstrip()


def _pieces(
    omega: Tensor, anchor: Tensor, weight: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ω, θ* and θ − θ*, piece by piece in double precision, where the weight is."""
    flat = (
        tensor.detach().reshape(-1).split(PIECE) for tensor in map(whole, (omega, anchor, weight))
    )
    for three in zip(*flat, strict=True):
        o, star, theta = (part.to(weight.device, torch.float64) for part in three)
        yield o, star, theta - star
