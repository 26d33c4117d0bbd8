"""Σₖ |∂sₖ/∂θ|ᵖ for any model, exactly, at about the price of one backward pass.

A batch takes this way: forward; the graph is read (graph.py); each parameter's frontier is known
from an earlier batch or found by probing (plan.py, frontier.py, layout.py), and how far that is
believed is written down (trust.py); one backward pass shows the gradients at the frontier
(backward.py), where closed forms (rules/) or masked backwards make contributions (contributions.py)
whose powers are summed over the samples (summing.py). What cannot go this way is looped over
(reference.py, fallback.py). A few samples are checked against the slow truth (check.py), and a few
of every new kind of batch against themselves alone (interaction.py). What the model's own code
touches on the way is given back (lent.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from retain.errors import NonFiniteError, RetainError
from retain.parameters import address
from retain.per_sample.backward import PerSampleBackward
from retain.per_sample.blame import BROKEN, raise_size
from retain.per_sample.check import ROWS, SelfCheck
from retain.per_sample.fallback import (
    ASKED,
    DEAR,
    DIFFERS,
    HOOKED,
    INSEPARABLE,
    LOOKED_AT,
    MANY_USES,
    MUCH_AROUND,
    NO_GRADIENT,
    SIDE_DOOR,
    UNASKABLE,
    UNUSED,
    WRITES,
    WRITTEN,
    some,
)
from retain.per_sample.graph import Graph, leaves_below
from retain.per_sample.halving import Halving, shortage
from retain.per_sample.hooks import Multipliers, hooked
from retain.per_sample.interaction import Company
from retain.per_sample.layout import probe_weights, verifying_weights
from retain.per_sample.lent import (
    Writes,
    gradients_aside,
    state_aside,
    taken_gradients,
    versions,
    weights_aside,
)
from retain.per_sample.passes import one_by_one, score_weights
from retain.per_sample.plan import make_plan
from retain.per_sample.prices import LONG, Prices, seconds_on, slow_routes, usual
from retain.per_sample.reference import add_powers, gradients_of, scored, sums_by_loop
from retain.per_sample.scaled import Exponent
from retain.per_sample.scores import UNLABELLED, Score, SquaredNorm
from retain.per_sample.scripted import interpreted
from retain.per_sample.shares import Shares
from retain.per_sample.stated import Stated
from retain.per_sample.sums import Sum, not_finite
from retain.per_sample.switches import leniently, repeatable, unrounded, without_autocast
from retain.per_sample.trust import Known, KnownPlans, Trust
from retain.per_sample.underflow import is_coarse, warn_of_underflow
from retain.per_sample.written import each_from_the_same, writes_across
from retain.samples.batches import Batch
from retain.samples.outputs import OutputPicker, checked, first_tensor, output_of, squared_norms

FEW = 3  # samples that are looked at closely: the fewest that tell a pattern from a coincidence
MANY = 8  # uses of a parameter by each sample that may be what makes it dear


class PerSample:
    """Computes Σₖ |∂sₖ/∂θ|ᵖ batch after batch; remembers what it learned about the model."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        score: Score,
        *,
        power: int = 1,
        output: OutputPicker | None = None,
        check: bool = True,
    ) -> None:
        self.model = model
        self.parameters = dict(parameters)
        self.score = score
        self.power = power
        self.output = output or first_tensor
        self.check = check
        # name → how its sums were computed in the last batch: "linear", "masked", "loop", …
        self.routes: dict[str, str] = {}
        self.precision: str | None = None  # in which the last batch was computed
        # Σₖ ‖F(xₖ)‖² of the last batch, and of the part of it that is being computed
        self.squared_norms = self._norms = torch.zeros(())
        self._sums = {
            name: Sum(p.shape, p.dtype, p.device, power) for name, p in self.parameters.items()
        }
        self._known = KnownPlans()
        self._halving = Halving()
        self._company = Company(model, lambda: self.output)
        self._exponent = Exponent(power)
        self._prices = Prices()
        self._device = next((p.device for p in self.parameters.values()), torch.device("cpu"))
        self._stated = Stated()
        self._multipliers = Multipliers()
        self._checked: set[frozenset[str]] = set()  # kinds of graph, and those called twice
        self._repeated: set[frozenset[str]] = set()
        self._looped: dict[str, str] = {}  # parameters that are looped over, and why
        self._silent: set[tuple[int, str]] = set()  # in which graphs which have no gradient
        # of the last batch: its kind, scores per sample, and the plan that it was computed by
        self._kind, self._scores = 0, 1
        self._plan_used: Known | None = None
        self._written: list[Tensor] | None = None  # weights that forward writes to; None: unknown

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The sums over the samples of `batch`, name → tensor shaped like the parameter.

        They belong to the engine until its next call. Call it inside `borrowed(model)`.

        Raises:
            InputError: the output cannot be differentiated for each sample.
            ModelError: the samples influence each other.
            NonFiniteError: NaN or infinity in outputs or gradients.
            OutOfMemoryError: one sample alone does not fit into memory; what does not fit together
                is halved.
        """
        self.squared_norms = torch.zeros(())
        with leniently():
            return self._halving(self._finite, batch.cut_off(self._leads_here))

    def _leads_here(self, given: Tensor) -> bool:
        """Whether an input was made by some of the parameters."""
        own = {id(p) for p in self.parameters.values()}
        return given.grad_fn is not None and any(
            id(leaf) in own for leaf in leaves_below(given.grad_fn)
        )

    def _finite(self, batch: Batch) -> dict[str, Tensor]:
        """The sums, if they are finite."""
        target = None
        while True:
            with gradients_aside(self.model), state_aside(self.model), interpreted(self.model):
                if self._written is None:
                    self._written = self._writes(batch)
                start = self._clock()
                with weights_aside(self._written):
                    target = self._compute(batch, target)
                self._price(batch, target, self._clock() - start)
            sums = {name: total.result() for name, total in self._sums.items()}
            broken = not_finite(self._sums)
            if not broken:
                # a batch may go in parts
                self.squared_norms = self._norms + self.squared_norms.to(self._norms)
                return sums
            if not self._exponent.lower():
                raise NonFiniteError(
                    f"NaN or infinity in the gradients of {some(broken)}. Nothing of this batch "
                    "was counted. Look for infinities in its inputs, or for a root or logarithm "
                    "of zero."
                )

    # ---- the way of a batch ----

    def _compute(self, batch: Batch, target: Tensor | None) -> Tensor | None:
        """Fill the sums; the target that was drawn on the way."""
        self._plan_used = None
        if writes_across(self._written or (), batch, lambda part: self._forward(part)[0]):
            self._written_between(batch, target)
            return target
        ahead = self._look_ahead(batch)
        graph, target = self._forward(batch, target)
        if self._exponent.settle(graph):
            graph, _ = self._forward(batch, target)
        output, precision = graph.output, graph.precision
        self.precision = self._stated.of(graph, {self.parameters[n].dtype for n in graph.leaves})
        self._norms = self._squared_norms(graph)
        if batch.samples == 1:
            self._alone(graph)
            if self.check and graph.operations not in self._repeated:
                sums = {name: one.total for name, one in self._sums.items() if not one.empty}
                self._look_for_underflow(graph, score_weights(graph), batch, target, sums)
                self._company.refuse_chance(batch, output, precision)
                self._repeated.add(graph.operations)
            elif self.check:
                self._company.refuse_luck(batch, output, precision)
        else:
            graph, known = self._ready(graph, batch, target, ahead)
            known = self._together(graph, batch, target, known)
            if self.check:
                self._company.look(batch, output, precision)
                self._company.refuse_luck(batch, output, precision)
            self._follow_side_doors()
            self._kind, self._plan_used = graph.signature, known
            self._scores = len(graph.scores) if graph.scores.ndim > 1 else 1
            self._loop(graph, batch, target, known.plan.inseparable)
        self._exponent.undo(self._sums.values())
        return target

    def _squared_norms(self, graph: Graph) -> Tensor:
        """Σₖ ‖F(xₖ)‖² of a batch, without another look at outputs whose norms are the scores."""
        if isinstance(self._exponent.of(self.score), SquaredNorm):
            return graph.scores.detach().sum()
        return squared_norms(graph.output)

    def _writes(self, batch: Batch) -> list[Tensor]:
        """The weights that a forward writes to, such as those of `nn.Embedding(max_norm=…)`."""
        # what is wrong with the batch, the pass itself will say
        wrong = suppress(*BROKEN)
        with Writes(self.model) as writes, torch.enable_grad(), wrong:
            batch.take(0, FEW).call(self.model)
        written: list[Tensor] = writes.weights
        return written

    def _forward(
        self, batch: Batch, target: Tensor | None = None, *, whatever: bool = False
    ) -> tuple[Graph, Tensor | None]:
        """The graph of a batch, and the target of its scores; of `whatever` the model gives."""
        with torch.enable_grad():
            output = output_of(self.model, batch, self.output)
            output = output if whatever else checked(output, batch.samples)
            with without_autocast():
                scores, target = scored(self._exponent.of(self.score), output, target, batch)
            return Graph(scores, self.parameters, output.detach()), target

    def _clear(self) -> None:
        for total in self._sums.values():
            total.clear()
        self.routes = dict.fromkeys(self.parameters, UNUSED)

    def _alone(self, graph: Graph) -> None:
        """One sample: the ordinary gradient is the sample's."""
        self._clear()
        for row in score_weights(graph):
            for name, g in gradients_of(graph, row, self.parameters).items():
                self._sums[name].add_raised(g)
                self.routes[name] = "one sample"

    def _ready(
        self, graph: Graph, batch: Batch, target: Tensor | None, ahead: tuple[int, Known] | None
    ) -> tuple[Graph, Known]:
        """A plan for this graph, and the graph; anew, if other forwards wrote to what it holds."""
        known = self._known.recall(graph, batch.samples)
        if known is not None:
            return graph, known
        tensors = [*self.model.parameters(), *self.model.buffers()]
        before = versions(tensors)
        known = self._seen_ahead(graph, batch, ahead) or self._plan(graph, batch, target)
        if versions(tensors) != before:
            graph, _ = self._forward(batch, target)
        return graph, known

    def _plan(self, graph: Graph, batch: Batch, target: Tensor | None) -> Known:
        """How to go through a new graph, and how far that may be trusted for this batch."""
        checking = self.check and graph.operations not in self._checked
        if self._known.is_ragged(graph) and not checking:
            return self._probe(graph, batch.samples)
        with unrounded():
            return self._learned(graph, batch, target, checking)

    def _learned(self, graph: Graph, batch: Batch, target: Tensor | None, checking: bool) -> Known:
        """What a few samples show about the graph of a batch, or else the batch itself."""
        samples = min(FEW, batch.samples)
        few, part, cut = self._fewer(batch, target, samples)
        small = self._probe(few, samples)
        if checking:
            self._compare(few, small, part, cut)
        alike = few.wiring == graph.wiring
        if samples < batch.samples:
            grown = small.plan.grown(graph, batch.samples) if alike else None
            if grown is not None and small.plan.likely:
                return Known(grown, Trust.GROWN, small.habits)
            known, fewer = self._probe(graph, batch.samples), few
        else:
            # texts that are packed are cut out into one row
            same = alike and small.plan.fits(graph)
            known = small if same else self._probe(graph, samples)
            fewer = self._fewer(batch, target, samples - 1)[0]
        proved = (
            fewer.wiring == graph.wiring and known.plan.grown(fewer, len(fewer.output)) is not None
        )
        self._known.keep(graph, batch.samples, known, proved=proved)
        return known

    def _look_ahead(self, batch: Batch) -> tuple[int, Known] | None:
        """The wiring and plan of a few samples, before a whole batch's activations stand beside.

        Of the first batch only. Whatever is wrong with it is found, and said, when the batch itself
        is looked at. Where a target has to be drawn, or a power of two to be settled, that is for
        the whole batch to do first.
        """
        unlabelled = isinstance(self.score, UNLABELLED)
        if not self.check or self._checked or batch.samples <= FEW or not unlabelled:
            return None
        with suppress(RetainError, RuntimeError, ValueError, IndexError), unrounded():
            few, part, _ = self._fewer(batch, None, FEW)
            if few.precision.dtype != torch.float16:
                known = self._probe(few, FEW)
                self._compare(few, known, part, None)
                return few.wiring, known
        return None

    def _seen_ahead(
        self, graph: Graph, batch: Batch, ahead: tuple[int, Known] | None
    ) -> Known | None:
        """What a few samples of this batch showed already, if that can be stretched to all."""
        if ahead is None or ahead[0] != graph.wiring or not ahead[1].plan.likely:
            return None
        grown = ahead[1].plan.grown(graph, batch.samples)
        return None if grown is None else Known(grown, Trust.GROWN, ahead[1].habits)

    def _fewer(
        self, batch: Batch, target: Tensor | None, samples: int
    ) -> tuple[Graph, Batch, Tensor | None]:
        """The first few samples of a batch: their graph, they, and their targets."""
        part, cut = batch.take(0, samples), None if target is None else target[:samples]
        try:
            return self._forward(part, cut)[0], part, cut
        except RetainError:
            raise
        except BROKEN as error:
            if shortage(error):
                raise
            raise_size(self.model, batch, part)

    def _probe(self, graph: Graph, samples: int) -> Known:
        scores = graph.scores
        weights = probe_weights(samples, graph.precision, scores.dtype, scores.device)
        held = {at for p in self.model.parameters() if (at := address(p))}
        with unrounded(), repeatable():
            return Known(make_plan(graph, weights, held), Trust.PROBED)

    def _together(self, graph: Graph, batch: Batch, target: Tensor | None, known: Known) -> Known:
        """The sums of the whole batch, and the plan by which they were found to be right."""
        samples = batch.samples
        if known.trust.enough:
            self._run(graph, samples, known)
            return known
        scores = graph.scores
        weights = verifying_weights(samples, graph.precision, scores.dtype, scores.device)
        expected, seen = Shares(known.plan, graph.precision), Shares(known.plan, graph.precision)
        with unrounded():
            backward = self._backward(graph, samples, known)
            with without_autocast():
                backward.look(score_weights(graph)[0] * weights, expected.see)
            self._run(graph, samples, known, also=seen)
        if not seen.agree(expected, weights):
            # the few samples were laid out in another way than the batch: look at the batch itself
            graph, _ = self._forward(batch, target)
            probed = self._probe(graph, samples)
            self._run(graph, samples, probed)
            return probed
        verified = replace(known, trust=Trust.VERIFIED)
        if seen.prove(expected, weights):
            verified = replace(verified, plan=known.plan.proved)
        self._known.keep(graph, samples, verified, proved=True)
        return verified

    def _run(self, graph: Graph, samples: int, known: Known, *, also: Shares | None = None) -> None:
        self._clear()
        rows = score_weights(graph)
        backward = self._backward(graph, samples, known)
        with without_autocast():
            for at, row in enumerate(rows, 1):
                see = also.see if also is not None and at == 1 else None
                backward.run(row, also=see, keep=at < len(rows))  # then the graph is let go
        self._conclude(backward)

    def _backward(self, graph: Graph, samples: int, known: Known) -> PerSampleBackward:
        return PerSampleBackward(graph, known.plan, self._sums, samples, known.habits)

    def _conclude(self, backward: PerSampleBackward) -> None:
        """Take over the routes of a pass, and let hooks on parameters have their say."""
        self.routes.update(backward.routes)
        self._looped.update(dict.fromkeys(backward.unaskable, UNASKABLE))
        for name in hooked(self.parameters):
            if name in self._looped or self._sums[name].empty:
                continue
            if not self._multipliers.apply(name, self.parameters[name], self._sums[name]):
                self._looped[name] = HOOKED

    def _follow_side_doors(self) -> None:
        """Loop over parameters whose gradients came some other way than by the graph."""
        arrived = taken_gradients(self.parameters)
        self._looped.update(dict.fromkeys(arrived, SIDE_DOOR))

    # ---- what is computed one sample at a time ----

    def _written_between(self, batch: Batch, target: Tensor | None) -> None:
        """Compute each sample alone, since a forward of others would write to what it uses."""
        start, outputs = self._clock(), list[Tensor]()

        def alone(k: int) -> dict[str, Tensor]:
            return sums_by_loop(
                self.model, batch.take(k, k + 1), self.parameters, self._exponent.of(self.score),
                power=self.power, output=self.output, outputs=outputs,
                target=None if target is None else target[k : k + 1],
            )  # fmt: skip

        self._clear()
        for name, total in each_from_the_same(self._written or (), batch, alone).items():
            self._sums[name].add(total)
            self.routes[name] = "loop" if total.any() else NO_GRADIENT
        self._norms = torch.stack([squared_norms(output) for output in outputs]).sum()
        self._exponent.undo(self._sums.values())
        told = {name: WRITTEN for name, route in self.routes.items() if route == "loop"}
        self._tell_looped(told, self._clock() - start, batch, target)

    def _missed(self, graph: Graph) -> list[str]:
        """Parameters that got no gradient: rightly so, or the loop will tell.

        Those in the graph; and where a user's `Function` runs, which may call backward inside of
        its own, also those outside of it.
        """
        outside = set() if not graph.has_functions else self.parameters.keys()
        return [
            name
            for name in dict.fromkeys([*graph.leaves, *outside])
            if self.routes[name] == UNUSED
            and name not in self._looped
            and (graph.wiring, name) not in self._silent
        ]

    def _loop(
        self, graph: Graph, batch: Batch, target: Tensor | None, inseparable: Iterable[str]
    ) -> None:
        """Compute what no other way is left for, and say what that costs."""
        asked = dict.fromkeys([*inseparable, *self._missed(graph)], INSEPARABLE)
        reasons = {**asked, **self._looped}
        if not reasons:
            return
        start = self._clock()
        chosen = {name: self.parameters[name] for name in reasons}
        found = sums_by_loop(
            self.model, batch, chosen, self._exponent.of(self.score),
            power=self.power, output=self.output, target=target,
        )  # fmt: skip
        seconds = self._clock() - start
        for name, total in found.items():
            self._sums[name].clear()
            self._sums[name].add(total)
            self.routes[name] = "loop"
        none = {name for name in asked if self.routes[name] == "loop" and not found[name].any()}
        self._silent.update((graph.wiring, name) for name in none)
        self.routes.update(dict.fromkeys(none, NO_GRADIENT))
        told = {name: reason for name, reason in reasons.items() if name not in none}
        self._tell_looped(told, seconds, batch, target)

    def _tell_looped(
        self, reasons: Mapping[str, str], seconds: float, batch: Batch, target: Tensor | None
    ) -> None:
        """Say once of each parameter that a loop of so many seconds was needed, and why."""
        self._prices.looped(
            reasons, seconds, lambda: self._plain_seconds(batch, target), batch.samples
        )

    def _price(self, batch: Batch, target: Tensor | None, seconds: float) -> None:
        """Once for every kind of batch: what it costs, and whether a loop is quicker."""
        known, slow = self._plan_used, slow_routes(self.routes)
        told = "loop" in self.routes.values() and not slow
        if known is None or told or not self._prices.due(self._kind, seconds):
            return

        def again() -> float:
            start = self._clock()
            with weights_aside(self._written or ()):
                self._compute(batch, target)
            return self._clock() - start

        price = self._prices.look(
            seconds, lambda: self._plain_seconds(batch, target), again, self._scores
        )
        if not price.dear:
            return
        if slow and price.seconds > LONG:
            one = batch.take(0, 1), None if target is None else target[:1]
            if batch.samples * usual(lambda: self._plain_seconds(*one)) < price.seconds / 2:
                self._looped.update(dict.fromkeys(slow, DEAR))
                again()
                return
        self._prices.dear(self.routes, price, batch.samples, self._why_dear(known))

    def _why_dear(self, known: Known) -> str:
        """The reason why closed forms cost more than they should."""
        if self._written:
            written = {id(weight) for weight in self._written}
            names = [name for name, p in self.model.named_parameters() if id(p) in written]
            return WRITES.format(some(names))
        if known.trust is not Trust.KEPT:
            return LOOKED_AT
        if asked := hooked(self.parameters):
            return ASKED.format(some(asked))
        often = max(known.plan.groups, key=lambda group: len(group.uses), default=None)
        if often is not None and len(often.uses) > MANY:
            return MANY_USES.format(some(often.names), len(often.uses))
        return MUCH_AROUND

    def _clock(self) -> float:
        return seconds_on(self._device)

    def _plain_seconds(self, batch: Batch, target: Tensor | None) -> float:
        """How long a plain forward and backward pass takes, with a backward for each score.

        If it is long, a backward counts as two forwards: the gradients of a large model would stand
        beside its sums.
        """
        parameters = [p for p in self.parameters.values() if p.requires_grad]
        with weights_aside(self._written or ()), torch.enable_grad():
            if self._written:  # whoever trains does not find them as they were
                output_of(self.model, batch, self.output)
            start = self._clock()
            output = checked(output_of(self.model, batch, self.output), batch.samples)
            with without_autocast():
                scores = scored(self._exponent.of(self.score), output, target, batch)[0]
                forward = self._clock() - start
                if forward > LONG:
                    backward = 2 * forward
                else:
                    _ = torch.autograd.grad(scores.sum(), parameters, allow_unused=True)
                    backward = self._clock() - start - forward
        taken_gradients(self.parameters)
        return forward + backward * self._scores

    def _compare(self, graph: Graph, known: Known, few: Batch, target: Tensor | None) -> None:
        """The self-check, once for every kind of graph: a few samples against the slow truth.

        Raises:
            ModelError: a sample has another output alone than together with others.
        """
        self._clear()
        rows = score_weights(graph)[:ROWS]
        backward = self._backward(graph, few.samples, known)
        with without_autocast(), repeatable():
            for row in rows:
                backward.run(row)
        self._conclude(backward)
        self._follow_side_doors()
        beside = self._looped.keys() | known.plan.inseparable
        sums = {name: s.result() for name, s in self._sums.items() if name not in beside}
        check = SelfCheck(self.parameters, self.power, self._forward, self._company)
        for name in check.wrong(graph, rows, few, target, sums):
            self._looped[name] = f"{DIFFERS} (by way of: {self.routes[name]})"
        self._follow_side_doors()
        self._look_for_underflow(graph, rows, few, target, sums)
        self._checked.add(graph.operations)

    def _look_for_underflow(
        self,
        graph: Graph,
        rows: list[Tensor],
        few: Batch,
        target: Tensor | None,
        sums: Mapping[str, Tensor],
    ) -> None:
        """Warn of gradients that float16 makes nothing of, once for every kind of graph."""
        if graph.precision.dtype != torch.float16:
            return
        with without_autocast():
            if not any(is_coarse(graph, row) for row in rows):
                return
            wide, _ = self._forward(few, target)
            truth: dict[str, Tensor] | None = None
            if wide.precision.dtype != torch.float16:
                truth = {name: torch.zeros_like(total) for name, total in sums.items()}
                for only in one_by_one(rows, few.samples):
                    alone = gradients_of(wide, only, self.parameters)
                    add_powers(truth, {n: alone[n] for n in sums if n in alone}, self.power)
        warn_of_underflow(sums, truth)
