"""Σₖ |∂sₖ/∂θ|ᵖ for any model, exactly, at about the price of one backward pass.

A batch takes this way: a forward pass (forward.py) leaves a graph, which is read (graph.py); each
parameter's frontier is known from an earlier batch or found by probing, and how far that is
believed is written down (trust.py); one backward pass along the plan shows the gradients at the
frontier, where what the samples contribute is summed (backward.py) into a tally (tally.py). What
cannot go this way is looped over (loop.py). A few samples are checked against the slow truth, and a
few of every new kind of batch against themselves alone (check.py). If all that was dear, it is said
or done otherwise (dear.py). What the model's own code touches on the way is given back (lent.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from retain.errors import NonFiniteError
from retain.per_sample.below import inputs_first, leaves_of
from retain.per_sample.check import SelfCheck
from retain.per_sample.dear import Dearness, Used
from retain.per_sample.fallback import some
from retain.per_sample.forward import Forward
from retain.per_sample.graph import Graph
from retain.per_sample.halving import Halving
from retain.per_sample.interaction import Company
from retain.per_sample.lent import state_aside, taken_gradients
from retain.per_sample.loop import Loop
from retain.per_sample.plain import PlainPass
from retain.per_sample.prices import Prices
from retain.per_sample.scaled import Exponent
from retain.per_sample.scores import UNLABELLED, Score, SquaredNorm
from retain.per_sample.scripted import interpreted
from retain.per_sample.stated import Stated
from retain.per_sample.sums import not_finite
from retain.per_sample.switches import leniently
from retain.per_sample.tally import Tally
from retain.per_sample.trust import Ladder, Trust
from retain.per_sample.truth import Truth
from retain.per_sample.written import writes_across
from retain.samples.batches import Batch
from retain.samples.outputs import OutputPicker, first_tensor, squared_norms


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
        self.precision: str | None = None  # in which the last batch was computed
        # Σₖ ‖F(xₖ)‖² of the last batch, and of the part of it that is being computed
        self.squared_norms = self._norms = torch.zeros(())
        self._exponent = Exponent(power)
        self._halving, self._stated = Halving(), Stated()
        forward = Forward(model, self.parameters, score, output or first_tensor, self._exponent)
        self._plain = PlainPass(forward)
        tally = Tally(self.parameters, power, self._plain.clock)
        self._forward, self._tally = forward, tally
        company = Company(model, lambda: forward.output)
        self._check = SelfCheck(Truth(forward, power), tally, company) if check else None
        self._ladder = Ladder(forward, tally, self._check)
        prices = Prices()
        self._loop = Loop(forward, tally, prices, self._plain)
        self._dearness = Dearness(forward, tally, prices, self._plain)

    @property
    def routes(self) -> dict[str, str]:
        """Name → the way its sum was computed in the last batch: "linear", "masked", "loop"."""
        return self._tally.routes

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
            id(leaf) in own for leaf in leaves_of(inputs_first(given.grad_fn))
        )

    def _finite(self, batch: Batch) -> dict[str, Tensor]:
        """The sums, if they are finite."""
        target = None
        while True:
            modules = list(self.model.modules())
            taken_gradients(self.parameters)  # of an attempt before, such as with more samples
            with state_aside(modules), interpreted(modules):
                target = self._priced(batch, target)
            sums = self._tally.results()
            broken = not_finite(self._tally.sums)
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

    def _priced(self, batch: Batch, target: Tensor | None) -> Tensor | None:
        """Fill the tally, and look at what that cost; the target that was drawn on the way."""
        ahead = isinstance(self.score, UNLABELLED) and self._ladder.looks_ahead(batch)
        seen = self._forward.look_for_writes(batch, ahead=ahead)
        if self._forward.overwrites:
            batch = replace(batch, overwritten=True)
        start = self._plain.clock()
        with self._forward.written_aside():
            target, used = self._compute(batch, target, seen)
        if used is not None:
            took = self._plain.clock() - start
            self._dearness.look(used, batch, target, took, lambda: self._compute(batch, target))
        return target

    def _compute(
        self, batch: Batch, target: Tensor | None, seen: list[Graph] | None = None
    ) -> tuple[Tensor | None, Used | None]:
        """Fill the tally; the target, and what the batch was computed by if by a plan.

        `seen` may hold the graph of its first few samples, which is taken out of it.
        """
        forward, check, ladder = self._forward, self._check, self._ladder
        begun = self._plain.clock()
        if writes_across(forward.written or (), batch, lambda part: forward(part)[0]):
            self._norms = self._loop.fill(batch, target)
            self._exponent.undo(self._tally.sums.values())
            return target, None
        # a target that has to be drawn, the whole batch draws first
        ahead = ladder.look_ahead(batch, seen or []) if isinstance(self.score, UNLABELLED) else None
        start = self._plain.clock()
        graph, target = forward(batch, target)
        seconds = self._plain.clock() - start
        if self._exponent.settle(graph):
            graph, _ = forward(batch, target)
        self.precision = self._stated.of(graph, {self.parameters[n].dtype for n in graph.leaves})
        self._norms = self._squared_norms(graph)
        self._plain.scores = len(graph.scores) if graph.scores.ndim > 1 else 1
        used = None
        if batch.samples == 1:
            self._tally.fill_with_one(graph)
            if check is not None:
                check.of_one(graph, batch, target)
        else:
            graph, known = ladder.climb(graph, batch, target, ahead)
            kind = graph.signature  # a pass lets go of what it is made of
            known = ladder.compute(graph, batch, target, known)
            if check is not None:
                check.of_outputs(graph, batch)
            self._tally.follow_side_doors()
            self._loop.complete(graph, batch, target, known.plan.inseparable)
            every = self._plain.clock() - begun
            kept = known.trust is Trust.KEPT or ladder.keeps(graph, batch.samples)
            later = seconds + self._tally.seconds if kept and not forward.written else every
            at_least = self._plain.forward_at_least(seconds)
            used = Used(kind, known, kept, at_least, later)
        self._exponent.undo(self._tally.sums.values())
        return target, used

    def _squared_norms(self, graph: Graph) -> Tensor:
        """Σₖ ‖F(xₖ)‖² of a batch, without another look at outputs whose norms are the scores."""
        if isinstance(self._exponent.of(self.score), SquaredNorm):
            return graph.scores.detach().sum()
        return squared_norms(graph.output)
