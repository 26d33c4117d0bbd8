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

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor

from retain.errors import RetainError
from retain.parameters import address
from retain.per_sample.backward import PerSampleBackward
from retain.per_sample.check import SelfCheck
from retain.per_sample.forward import FEW, Forward
from retain.per_sample.graph import Graph
from retain.per_sample.layout import probe_weights, verifying_weights
from retain.per_sample.lent import versions
from retain.per_sample.passes import score_weights
from retain.per_sample.plan import Habits, Plan, make_plan
from retain.per_sample.shares import Shares, Silence
from retain.per_sample.switches import repeatable, unrounded, without_autocast
from retain.per_sample.tally import Tally
from retain.samples.batches import Batch

REMEMBERED = 64  # plans that are remembered
OFTEN = 8  # times that gradients of zero turned out to be others, after which all is looked at
OTHERS = (5, 7, 8)  # samples that are looked at where a few of them leave a doubt

Ahead = tuple[int, "Known"]  # the wiring of a few samples' graph, and what they showed


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

    def grown(self, graph: Graph, samples: int) -> Known | None:
        """The same, stretched to a graph of more samples: a guess. None where that is no use."""
        plan = self.plan.grown(graph, samples) if self.plan.likely else None
        return None if plan is None else Known(plan, Trust.GROWN, self.habits)


class KnownPlans:
    """The plans that may be used again, by graph and number of samples."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Known] = {}
        self._ragged: set[int] = set()  # graphs whose layouts change from batch to batch
        # of graphs with gradients that are zero in some batches only: how often that was met, and
        # what was known before, with samples
        self._loud: Counter[int] = Counter()
        self._heard: dict[tuple[int, int], Plan] = {}

    def recall(self, graph: Graph, samples: int) -> Known | None:
        """What is known about this graph for so many samples, if its shapes are the same."""
        _ = graph.numbered  # as long as there is something to ask
        known = self._known.get((graph.signature, samples))
        return known if known is not None and known.plan.fits(graph) else None

    def forget(self, graph: Graph, samples: int) -> None:
        """What was zero is not so any longer: look again, but keep in mind what was not zero."""
        known = self._known.pop((graph.signature, samples), None)
        if known is not None:
            self._heard[graph.signature, samples] = known.plan
        self._loud[graph.signature] += 1

    def is_ragged(self, graph: Graph) -> bool:
        """Whether this graph was seen to be laid out in another way from batch to batch."""
        return graph.signature in self._ragged

    def keep(self, graph: Graph, samples: int, known: Known, *, proved: bool) -> None:
        """Remember a plan that was right for this batch, if it must be for others as well.

        `proved`: it was right for another number of samples too, so that no coincidence of zeros
        has made a gradient look separable. Where data decide which rows go where, it stays a
        guess, to be verified on every batch.
        """
        heard = self._heard.pop((graph.signature, samples), None)
        if heard is not None:
            known = replace(known, plan=known.plan.hearing(heard))
        changing = bool(known.plan.frontier.silent) and self._loud[graph.signature] > OFTEN
        if not known.plan.certain or not proved or changing:
            self._ragged.add(graph.signature)
            return
        while len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        trust = Trust.GROWN if known.plan.frontier.wandering else Trust.KEPT
        self._known[graph.signature, samples] = replace(known, trust=trust)


class Ladder:
    """Finds a plan for each batch, and computes the batch by it when that may be trusted."""

    def __init__(self, forward: Forward, tally: Tally, check: SelfCheck | None) -> None:
        self._forward, self._tally, self._check = forward, tally, check
        self.plans = KnownPlans()

    def looks_ahead(self, batch: Batch) -> bool:
        """Whether a few samples go before this batch: the first, if it has more of them."""
        return self._check is not None and not self._check.begun and batch.samples > FEW

    def look_ahead(self, batch: Batch, seen: list[Graph]) -> Ahead | None:
        """What a few samples show, before a whole batch's activations stand beside theirs.

        Their graph may be `seen` already. Whatever is wrong with the batch is found, and said, when
        it is looked at itself.
        """
        if self._check is None or not self.looks_ahead(batch):
            return None
        with suppress(RetainError, RuntimeError, ValueError, IndexError), unrounded():
            few = seen.pop() if seen else self._forward.few(batch, None, FEW)[0]
            # the power of two of half precision is to be settled by the whole batch
            if few.precision.dtype != torch.float16:
                known = self._probe_few(few, batch, None)
                self._check.of_few(self._along(few, FEW, known), batch.take(0, FEW), None)
                return few.wiring, known
        return None

    def climb(
        self, graph: Graph, batch: Batch, target: Tensor | None, ahead: Ahead | None
    ) -> tuple[Graph, Known]:
        """A plan for this graph, and the graph; anew, if other forwards wrote to what it holds."""
        known = self.plans.recall(graph, batch.samples)
        if known is not None:
            return graph, known
        tensors = [*self._forward.model.parameters(), *self._forward.model.buffers()]
        before = versions(tensors)
        known = _grown_from(ahead, graph, batch.samples) or self._found(graph, batch, target)
        if versions(tensors) != before:
            graph, _ = self._forward(batch, target)
        return graph, known

    def keeps(self, graph: Graph, samples: int) -> bool:
        """Whether the next batch that makes this graph will be computed without another look."""
        known = self.plans.recall(graph, samples)
        return known is not None and known.trust.enough

    def compute(self, graph: Graph, batch: Batch, target: Tensor | None, known: Known) -> Known:
        """Fill the tally by this plan, verified if it must be, or by another; which one it was."""
        samples = batch.samples
        if known.trust.enough:
            silence = Silence(known.plan)
            self._fill(graph, samples, known, silence=silence)
            if not silence.broken:
                return known
            self.plans.forget(graph, samples)
            if self._check is not None:
                self._check.forget(graph)
            graph, found = self.climb(self._forward(batch, target)[0], batch, target, None)
            return self.compute(graph, batch, target, found)
        scores = graph.scores
        weights = verifying_weights(samples, graph.precision, scores.dtype, scores.device)
        expected, seen = Shares(known.plan, graph.precision), Shares(known.plan, graph.precision)
        with unrounded():
            with without_autocast():
                backward = self._along(graph, samples, known)
                backward.look(score_weights(graph)[0] * weights, expected.see)
            self._fill(graph, samples, known, also=seen)
        if not seen.agree(expected, weights):
            # the few samples were laid out in another way than the batch: look at the batch itself
            again, _ = self._forward(batch, target)
            probed = self._probe(again, samples)
            self._fill(again, samples, probed)
            if not probed.plan.frontier.wandering:  # else the next may be laid out in another way
                self._keep_settled(probed, graph, batch, target, known.plan)
            return probed
        verified = replace(known, trust=Trust.VERIFIED)
        if seen.prove(expected, weights):
            verified = replace(verified, plan=known.plan.proved)
            self.plans.keep(graph, samples, verified, proved=True)
        else:
            again, _ = self._forward(batch, target)
            probed = self._probe(again, samples)
            self._keep_settled(probed, graph, batch, target, known.plan)
        return verified

    def _keep_settled(
        self, probed: Known, graph: Graph, batch: Batch, target: Tensor | None, small: Plan
    ) -> None:
        """Remember what was read off a batch if, of all that fits, one fits fewer samples, too."""
        with unrounded():
            settled = self._settled(probed, graph, batch, target, small)
        self.plans.keep(graph, batch.samples, settled or probed, proved=settled is not None)

    def _found(self, graph: Graph, batch: Batch, target: Tensor | None) -> Known:
        """How to go through a new graph, and how far that may be trusted for this batch."""
        check = self._check if self._check is not None and self._check.due(graph) else None
        if self.plans.is_ragged(graph) and check is None:
            return self._probe(graph, batch.samples)
        with unrounded():
            return self._learned(graph, batch, target, check)

    def _learned(
        self, graph: Graph, batch: Batch, target: Tensor | None, check: SelfCheck | None
    ) -> Known:
        """What a few samples show about the graph of a batch, or else the batch itself."""
        samples = min(FEW, batch.samples)
        few, part, cut = self._forward.few(batch, target, samples)
        small = self._probe_few(few, batch, target)
        if check is not None:
            check.of_few(self._along(few, samples, small), part, cut)
        alike = few.wiring == graph.wiring
        if samples < batch.samples:
            grown = small.grown(graph, batch.samples) if alike else None
            if grown is not None:
                return grown
            known, fewer = self._probe(graph, batch.samples), few
        else:
            # texts that are packed are cut out into one row
            same = alike and small.plan.fits(graph)
            known = small if same else self._probe(graph, samples)
            fewer = self._other(batch, target)
        proved = (
            fewer.wiring == graph.wiring and known.plan.grown(fewer, len(fewer.output)) is not None
        )
        if proved and not known.plan.certain:
            known = self._settled(known, graph, batch, target) or known
        self.plans.keep(graph, batch.samples, known, proved=proved)
        return known

    def _settled(
        self, known: Known, graph: Graph, batch: Batch, target: Tensor | None, *seen: Plan
    ) -> Known | None:
        """The same, certain; None unless one layout alone fits other numbers of samples as well.

        Those of the plans that were `seen` already, or of a few more. In a few samples of which
        most gradients are zero (a class token) more layouts fit than their own.
        """
        settled = known.plan.settled(seen) if seen else None
        if settled is not None:
            return replace(known, plan=settled)
        for samples in OTHERS if known.plan.can_be_settled else ():
            more, cut = batch, target
            while more.samples < samples:
                doubled = more.doubled()
                if doubled is None:
                    return None
                more, cut = doubled, None if cut is None else torch.cat([cut, cut])
            other, _, _ = self._forward.few(more, cut, samples)
            if other.wiring != graph.wiring:
                return None
            seen = (*seen, self._probe(other, samples).plan)
            settled = known.plan.settled(seen)
            if settled is not None:
                return replace(known, plan=settled)
        return None

    def _other(self, batch: Batch, target: Tensor | None) -> Graph:
        """The graph of another number of samples than the few of a batch: fewer, but not one.

        A single sample often makes a graph of its own; so two are taken twice.
        """
        doubled = batch.doubled() if batch.samples == FEW - 1 else None
        if doubled is None:
            return self._forward.few(batch, target, batch.samples - 1)[0]
        return self._forward(doubled, None if target is None else torch.cat([target, target]))[0]

    def _probe_few(self, few: Graph, batch: Batch, target: Tensor | None) -> Known:
        """A plan read off the first few samples of a batch, and off more if there is no telling."""
        known = self._probe(few, min(FEW, batch.samples))
        if known.plan.frontier.doubtful:
            known = self._settled(known, few, batch, target) or known
        return known

    def _probe(self, graph: Graph, samples: int) -> Known:
        """A plan read off this very graph."""
        scores = graph.scores
        weights = probe_weights(samples, graph.precision, scores.dtype, scores.device)
        held = {at for p in self._forward.model.parameters() if (at := address(p))}
        with unrounded(), repeatable():
            return Known(make_plan(graph, weights, held), Trust.PROBED)

    def _fill(
        self,
        graph: Graph,
        samples: int,
        known: Known,
        *,
        also: Shares | None = None,
        silence: Silence | None = None,
    ) -> None:
        see = None if also is None else also.see
        every = None if silence is None or not known.plan.frontier.silent else silence.see
        backward, rows = self._along(graph, samples, known), score_weights(graph)
        self._tally.fill(backward, rows, also=see, throughout=every)

    def _along(self, graph: Graph, samples: int, known: Known) -> PerSampleBackward:
        return PerSampleBackward(graph, known.plan, self._tally.sums, samples, known.habits)


def _grown_from(ahead: Ahead | None, graph: Graph, samples: int) -> Known | None:
    """What a few samples of this batch showed already, if that can be stretched to all."""
    if ahead is None or ahead[0] != graph.wiring:
        return None
    return ahead[1].grown(graph, samples)
