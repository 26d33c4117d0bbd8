"""What is done about a batch that is dear: a loop instead, if that is quicker; or it is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from retain.per_sample.fallback import (
    ASKED,
    DEAR,
    LOOKED_AT,
    MANY_USES,
    MUCH_AROUND,
    UNUSED,
    WRITES,
    some,
)
from retain.per_sample.forward import Forward
from retain.per_sample.hooks import hooked
from retain.per_sample.plain import PlainPass
from retain.per_sample.prices import LONG, WARM, Price, Prices, slow_routes, usual
from retain.per_sample.tally import Tally
from retain.per_sample.trust import Known, Trust
from retain.samples.batches import Batch

MANY = 8  # uses of a parameter by each sample that may be what makes it dear


class Used(NamedTuple):
    """What a batch was computed by: its kind of graph, and the plan."""

    kind: int
    known: Known
    kept: bool  # whether the next batch of this kind need not be looked at
    forward: float  # seconds that its forward pass took
    later: float  # that the next batch of this kind will take


class Dearness:
    """Looks, once for every kind of batch, at what it costs, and whether a loop is quicker."""

    def __init__(self, forward: Forward, tally: Tally, prices: Prices, plain: PlainPass) -> None:
        self._forward, self._tally = forward, tally
        self._prices, self._plain = prices, plain

    def look(
        self,
        used: Used,
        batch: Batch,
        target: Tensor | None,
        seconds: float,
        again: Callable[[], object],
    ) -> None:
        """Look at a batch that took so long; `again` computes it once more."""
        plain, routes = self._plain, self._tally.routes
        slow = slow_routes(routes)
        told = "loop" in routes.values() and not slow
        if told:
            return
        fresh = used.kept and used.known.trust is not Trust.KEPT
        if fresh and not slow and used.later > WARM:
            return  # code was loaded and ways were tried: the next one of this kind will tell
        if not self._prices.due(used.kind, seconds):
            return
        # Most are cheap beyond doubt, which no plain pass has to show. But a first pass that writes
        # to weights writes more than later ones, and what surrounds it is not in `later`.
        later = seconds if self._forward.written else used.later
        doubtful = slow or self._forward.written
        whole = self._goes_through_all()
        if not doubtful and not Price.at_most(later, used.forward, plain.scores, whole=whole).dear:
            return

        def another() -> float:
            start = plain.clock()
            with self._forward.written_aside():
                again()
            return plain.clock() - start

        price = self._prices.look(
            min(seconds, later), lambda: plain.seconds(batch, target), another, plain.scores
        )
        if not price.dear:
            return
        if slow and price.seconds > LONG:
            one = batch.take(0, 1), None if target is None else target[:1]
            if batch.samples * usual(lambda: plain.seconds(*one)) < price.seconds / 2:
                self._tally.looped.update(dict.fromkeys(slow, DEAR))
                another()
                return
        self._prices.dear(self._tally.routes, price, batch.samples, self._why(used))

    def _goes_through_all(self) -> bool:
        """Whether a backward pass goes through every layer that a forward does."""
        routes = self._tally.routes
        reached = {id(p) for n, p in self._tally.parameters.items() if routes[n] != UNUSED}
        return all(id(p) in reached for p in self._forward.model.parameters())

    def _why(self, used: Used) -> str:
        """The reason why closed forms cost more than they should."""
        if self._forward.written:
            written = {id(weight) for weight in self._forward.written}
            every = self._forward.model.named_parameters()
            return WRITES.format(some(name for name, p in every if id(p) in written))
        if not used.kept:
            return LOOKED_AT
        if asked := hooked(self._tally.parameters):
            return ASKED.format(some(asked))
        often = max(used.known.plan.groups, key=lambda group: len(group.uses), default=None)
        if often is not None and len(often.uses) > MANY:
            return MANY_USES.format(some(often.names), len(often.uses))
        return MUCH_AROUND
