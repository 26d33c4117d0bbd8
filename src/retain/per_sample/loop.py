"""What is computed one sample at a time, since nothing else is left, or is quicker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from retain.per_sample.fallback import INSEPARABLE, NO_GRADIENT, UNUSED, WRITTEN
from retain.per_sample.forward import Forward
from retain.per_sample.graph import Graph
from retain.per_sample.plain import PlainPass
from retain.per_sample.prices import Prices
from retain.per_sample.reference import sums_by_loop
from retain.per_sample.tally import Tally
from retain.per_sample.written import each_from_the_same
from retain.samples.batches import Batch
from retain.samples.outputs import squared_norms


class Loop:
    """Completes a tally, and says once of each parameter what that costs."""

    def __init__(self, forward: Forward, tally: Tally, prices: Prices, plain: PlainPass) -> None:
        self._forward, self._tally = forward, tally
        self._prices, self._plain = prices, plain
        self._silent: set[tuple[int, str]] = set()  # in which graphs which have no gradient

    def complete(
        self, graph: Graph, batch: Batch, target: Tensor | None, inseparable: Iterable[str]
    ) -> None:
        """Compute what no other way is left for, and what got no gradient without a reason."""
        tally = self._tally
        asked = dict.fromkeys([*inseparable, *self._missed(graph)], INSEPARABLE)
        reasons = {**asked, **tally.looped}
        if not reasons:
            return
        start = self._plain.clock()
        found = self._sums(batch, target, reasons)
        seconds = self._plain.clock() - start
        none = {name for name in asked if name in found and not found[name].any()}
        for name, total in found.items():
            tally.replace(name, total, NO_GRADIENT if name in none else "loop")
        self._silent.update((graph.wiring, name) for name in none)
        told = {name: reason for name, reason in reasons.items() if name not in none}
        self._tell(told, seconds, batch, target)

    def fill(self, batch: Batch, target: Tensor | None) -> Tensor:
        """Compute each sample alone, since a forward of others would write to what it uses.

        What comes back is Σₖ ‖F(xₖ)‖².
        """
        start, outputs, tally = self._plain.clock(), list[Tensor](), self._tally

        def alone(k: int) -> dict[str, Tensor]:
            own = None if target is None else target[k : k + 1]
            return self._sums(batch.take(k, k + 1), own, tally.parameters, outputs)

        tally.clear()
        for name, total in each_from_the_same(self._forward.written or (), batch, alone).items():
            tally.replace(name, total, "loop" if total.any() else NO_GRADIENT)
        told = {name: WRITTEN for name, route in tally.routes.items() if route == "loop"}
        self._tell(told, self._plain.clock() - start, batch, target)
        return torch.stack([squared_norms(output) for output in outputs]).sum()

    def _sums(
        self,
        batch: Batch,
        target: Tensor | None,
        names: Iterable[str],
        outputs: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        chosen = {name: self._tally.parameters[name] for name in names}
        return sums_by_loop(
            self._forward.model, batch, chosen, self._forward.score, power=self._tally.power,
            output=self._forward.output, target=target, outputs=outputs,
        )  # fmt: skip

    def _missed(self, graph: Graph) -> list[str]:
        """Parameters that got no gradient: rightly so, or the loop will tell.

        Those in the graph; and where a user's `Function` runs, which may call backward inside of
        its own, also those outside of it.
        """
        tally = self._tally
        outside = set() if not graph.has_functions else tally.parameters.keys()
        return [
            name
            for name in dict.fromkeys([*graph.leaves, *outside])
            if tally.routes[name] == UNUSED
            and name not in tally.looped
            and (graph.wiring, name) not in self._silent
        ]

    def _tell(
        self, reasons: Mapping[str, str], seconds: float, batch: Batch, target: Tensor | None
    ) -> None:
        """Say once of each parameter that a loop of so many seconds was needed, and why."""
        self._prices.looped(
            reasons, seconds, lambda: self._plain.seconds(batch, target), batch.samples
        )
