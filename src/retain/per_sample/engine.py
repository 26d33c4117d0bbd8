"""Σₖ |∂sₖ/∂θ|ᵖ for any model, exactly, at about the price of one backward pass.

A batch takes this way: forward; the graph is read (graph.py); each parameter's frontier is known
from an earlier batch or found by probing (plan.py, frontier.py, layout.py); one backward pass shows
the gradients at the frontier (backward.py), where closed forms (rules/) or masked backwards make
terms (terms.py) whose powers are summed over the samples (sums.py). What cannot go this way is
looped over (reference.py), and a few samples are checked against that loop (check.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from retain.batches import Batch
from retain.errors import NonFiniteError, RetainError
from retain.outputs import OutputPicker, checked, first_tensor, output_of
from retain.per_sample.backward import PerSampleBackward
from retain.per_sample.check import disagreeing, refuse_interaction, refuse_size
from retain.per_sample.graph import Graph
from retain.per_sample.halving import Halving
from retain.per_sample.layout import probe_weights, verifying_weights
from retain.per_sample.plan import Energies, Plan, make_plan
from retain.per_sample.reference import sums_by_loop
from retain.per_sample.scores import FirstScores, Score
from retain.per_sample.sums import Sum, not_finite
from retain.per_sample.trust import Known, Memory, Trust

FEW = 3  # samples that are looked at closely: the fewest that tell a pattern from a coincidence


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
        self._sums = {
            name: Sum(p.shape, p.dtype, p.device, power) for name, p in self.parameters.items()
        }
        self._memory = Memory()
        self._halving = Halving()
        self._checked: set[frozenset[str]] = set()
        self._mistrusted: set[str] = (
            set()
        )  # parameters that are looped over: opaque, or failed the check

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
        return self._halving(self._whole, batch)

    def _whole(self, batch: Batch) -> dict[str, Tensor]:
        """The sums over the samples of a batch that fits into memory."""
        graph, target = self._forward(batch)
        if batch.samples == 1:
            self._alone(graph)
        else:
            plan = self._together(graph, batch, target, self._plan(graph, batch, target))
            self._loop(batch, target, plan.lost | self._mistrusted)
        sums = {name: total.result() for name, total in self._sums.items()}
        broken = not_finite(self._sums)
        if broken:
            raise NonFiniteError(
                f"NaN or infinity in the gradients of {_some(broken)}. Nothing of this batch was "
                "counted. Look for infinities in its inputs, or for a root or logarithm of zero."
            )
        return sums

    def _forward(self, batch: Batch, target: Tensor | None = None) -> tuple[Graph, Tensor | None]:
        with torch.enable_grad():
            output = checked(output_of(self.model, batch, self.output), batch.samples)
            if target is None:
                target = self.score.target(output.detach(), batch)
            return Graph(self.score(output, target), self.parameters, output.detach()), target

    def _clear(self) -> None:
        for total in self._sums.values():
            total.clear()
        self.routes = dict.fromkeys(self.parameters, "unused")

    def _alone(self, graph: Graph) -> None:
        """One sample: the ordinary gradient is the sample's."""
        self._clear()
        used = list(graph.leaves)
        for row in graph.rows():
            ends = [(leaf, 0) for leaf in graph.leaves.values()]
            for name, g in zip(used, graph.gradients(row, ends)):
                if g is not None:
                    dense = g.to_dense() if g.is_sparse else g
                    self._sums[name].add(self._sums[name].raised(dense))
                    self.routes[name] = "one sample"

    def _plan(self, graph: Graph, batch: Batch, target: Tensor | None) -> Known:
        """How to go through this graph, and how far that may be trusted for this batch."""
        known = self._memory.recall(graph, batch.samples)
        if known is not None:
            return known
        checking = self.check and graph.operations not in self._checked
        if self._memory.is_ragged(graph) and not checking:
            return self._probe(graph, batch.samples)
        if batch.samples <= FEW:
            known = self._probe(graph, batch.samples)
            if checking:
                self._compare(graph, known, batch, target)
            fewer = self._fewer(batch, target, batch.samples - 1)[0]
            self._keep(graph, batch.samples, known, fewer)
            return known
        few, part, cut = self._fewer(batch, target, FEW)
        small = self._probe(few, FEW)
        if checking:
            self._compare(few, small, part, cut)
        alike = small.plan.likely and few.wiring == graph.wiring
        grown = small.plan.grown(graph, batch.samples) if alike else None
        if grown is not None:
            return Known(grown, Trust.GROWN)
        known = self._probe(graph, batch.samples)
        self._keep(graph, batch.samples, known, few)
        return known

    def _fewer(
        self, batch: Batch, target: Tensor | None, samples: int
    ) -> tuple[Graph, Batch, Tensor | None]:
        """The first few samples of a batch: their graph, they, and their targets."""
        part, cut = batch.take(0, samples), None if target is None else target[:samples]
        try:
            return self._forward(part, cut)[0], part, cut
        except RetainError:
            raise
        except (RuntimeError, ValueError, IndexError):
            refuse_size(self.model, batch, part)

    def _probe(self, graph: Graph, samples: int) -> Known:
        scores = graph.scores
        weights = probe_weights(samples, scores.dtype, scores.device)
        plan = make_plan(graph, [graph.weighted(w) for w in weights], samples)
        return Known(plan, Trust.PROBED)

    def _keep(self, graph: Graph, samples: int, known: Known, fewer: Graph) -> None:
        """Remember a plan that was probed, if it also holds for the graph of `fewer` samples."""
        alike = fewer.wiring == graph.wiring
        proved = alike and known.plan.grown(fewer, len(fewer.output)) is not None
        self._memory.keep(graph, samples, known, proved=proved)

    def _together(self, graph: Graph, batch: Batch, target: Tensor | None, known: Known) -> Plan:
        """The sums of the whole batch, and the plan by which they were found to be right."""
        samples = batch.samples
        if known.trust.enough:
            self._run(graph, samples, known)
            return known.plan
        weights = verifying_weights(samples, graph.scores.dtype, graph.scores.device)
        expected, seen = Energies(known.plan), Energies(known.plan)
        backward = PerSampleBackward(graph, known.plan, self._sums, samples, known.habits)
        backward.look(graph.rows()[0] * weights, expected.see)
        self._run(graph, samples, known, also=seen)
        if not seen.agree(expected, weights):
            # the few samples were laid out in another way than the batch: look at the batch itself
            graph, _ = self._forward(batch, target)
            probed = self._probe(graph, samples)
            self._run(graph, samples, probed)
            return probed.plan
        verified = replace(known, trust=Trust.VERIFIED)
        if seen.prove(expected, weights):
            verified = replace(verified, plan=known.plan.proved)
        self._memory.keep(graph, samples, verified, proved=True)
        return verified.plan

    def _run(
        self,
        graph: Graph,
        samples: int,
        known: Known,
        *,
        also: Energies | None = None,
    ) -> None:
        self._clear()
        backward = PerSampleBackward(graph, known.plan, self._sums, samples, known.habits)
        rows = graph.rows()
        for at, row in enumerate(rows, 1):
            see = also.see if also is not None and at == 1 else None
            backward.run(row, also=see, keep=at < len(rows))  # then the graph is let go
        self.routes.update(backward.routes)
        self._mistrusted.update(backward.opaque)

    def _loop(self, batch: Batch, target: Tensor | None, names: frozenset[str] | set[str]) -> None:
        """What has no frontier, or failed the check, one sample at a time."""
        if not names:
            return
        for name, total in self._by_loop(batch, target, names, self.score).items():
            self._sums[name].clear()
            self._sums[name].add(total)
            self.routes[name] = "loop"

    def _by_loop(
        self,
        batch: Batch,
        target: Tensor | None,
        names: set[str] | frozenset[str],
        score: Score,
        outputs: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The loop's sums; `outputs` is filled with what the model gave for each sample."""
        chosen = {name: p for name, p in self.parameters.items() if name in names}
        return sums_by_loop(
            *(self.model, batch, chosen, score),
            power=self.power,
            output=self.output,
            target=target,
            outputs=outputs,
        )

    def _compare(self, graph: Graph, known: Known, few: Batch, target: Tensor | None) -> None:
        """The self-check, once for every kind of graph: a few samples against the loop.

        Raises:
            ModelError: a sample has another output alone than together with others.
        """
        score = FirstScores(self.score)
        self._clear()
        backward = PerSampleBackward(graph, known.plan, self._sums, few.samples, known.habits)
        for row in graph.rows()[: score.count]:
            backward.run(row)
        self._mistrusted.update(backward.opaque)
        names = self.parameters.keys() - self._mistrusted - known.plan.lost
        truth: dict[str, Tensor] = {}
        alone: list[Tensor] | None = []
        try:
            truth = self._by_loop(few, target, names, score, alone)
        except RetainError:
            raise
        except (RuntimeError, ValueError, IndexError):
            alone = None  # the model cannot take one sample
        refuse_interaction(self.model, few, self.output, graph.output, alone)
        wrong = disagreeing({name: self._sums[name].result() for name in names}, truth, self.power)
        if wrong:
            ways = sorted({backward.routes.get(name, "unused") for name in wrong})
            warnings.warn(
                f"The batched gradients of {_some(wrong)} (by way of: {', '.join(ways)}) differ "
                "from those of single samples; they will be computed one sample at a time, which "
                "is exact but slower.",
                stacklevel=5,
            )
            self._mistrusted.update(wrong)
        self._checked.add(graph.operations)


def _some(names: list[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:5])
    return listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")
