"""The ladder of trust: how far what was learned about one batch may be used for the next.

A plan says which sample owns which row of every gradient at the frontier. Believed wrongly, it
would give rows to the wrong samples without any error. So every plan stands on a rung:

* probed: read off this very batch, by passes that take its samples apart. Right for it.
* grown: read off a few samples and stretched to as many as the batch has. A guess.
* verified: grown, and one more pass over this batch, with a weight of its own for every sample, has
  shown each share of the gradients to grow by its owner's weight. Right for this batch.
* kept: right for one batch and, stretched or shrunk, for another number of samples, in a graph
  whose operations all leave rows with their samples. Right for every batch that makes this graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum

from retain.per_sample.graph import Graph
from retain.per_sample.plan import Habits, Plan

REMEMBERED = 64  # plans that are remembered


class Trust(IntEnum):
    """The rungs: a guess, two that hold for one batch, one that holds for many."""

    GROWN = 0
    PROBED = 1
    VERIFIED = 2
    KEPT = 3

    @property
    def enough(self) -> bool:
        """Whether a batch may be computed by such a plan without looking at it first."""
        return self in (Trust.PROBED, Trust.KEPT)


@dataclass(frozen=True)
class Known:
    """A plan, how far it is trusted, and what passes along it have shown on the way."""

    plan: Plan
    trust: Trust
    habits: Habits = field(default_factory=Habits)


class KnownPlans:
    """The plans that may be used again, by graph and number of samples."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Known] = {}
        self._ragged: set[int] = set()  # graphs whose layouts change from batch to batch

    def recall(self, graph: Graph, samples: int) -> Known | None:
        """What is known about this graph for so many samples, if its shapes are the same."""
        known = self._known.get((graph.signature, samples))
        return known if known is not None and known.plan.fits(graph) else None

    def is_ragged(self, graph: Graph) -> bool:
        """Whether this graph was seen to be laid out in another way from batch to batch."""
        return graph.signature in self._ragged

    def keep(self, graph: Graph, samples: int, known: Known, *, proved: bool) -> None:
        """Remember a plan that was right for this batch, if it must be for others as well.

        `proved`: it was right for another number of samples too, so that no coincidence of zeros
        has made a gradient look separable. Where data decide which rows go where, it stays a
        guess, to be verified on every batch.
        """
        if not known.plan.certain or not proved:
            self._ragged.add(graph.signature)
            return
        while len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        trust = Trust.GROWN if known.plan.frontier.wandering else Trust.KEPT
        self._known[graph.signature, samples] = replace(known, trust=trust)
