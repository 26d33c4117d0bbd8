"""The forward pass of a batch, and the graph that it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from retain.errors import RetainError
from retain.per_sample.below import beginning
from retain.per_sample.blame import BROKEN, raise_size
from retain.per_sample.graph import Graph
from retain.per_sample.halving import shortage
from retain.per_sample.lent import Writes, weights_aside
from retain.per_sample.reference import scored
from retain.per_sample.scaled import Exponent
from retain.per_sample.scores import Score
from retain.per_sample.switches import unrounded, without_autocast
from retain.samples.batches import Batch
from retain.samples.outputs import OutputPicker, checked, output_of

FEW = 3  # samples that are looked at closely: the fewest that tell a pattern from a coincidence


class Forward:
    """Makes graphs: of a batch, or of its first few samples, with the scores that are wanted."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        score: Score,
        output: OutputPicker,
        exponent: Exponent,
    ) -> None:
        self.model, self.parameters, self.output = model, parameters, output
        self._score, self._exponent = score, exponent
        self.written: list[Tensor] | None = None  # weights that a pass writes to; None: unknown
        self.overwrites = False  # whether a pass writes to its inputs

    @property
    def score(self) -> Score:
        """What is differentiated: the score, times the power of two that half precision needs."""
        return self._exponent.of(self._score)

    def __call__(
        self, batch: Batch, target: Tensor | None = None, *, whatever: bool = False
    ) -> tuple[Graph, Tensor | None]:
        """The graph of a batch, and the target of its scores; of `whatever` the model gives."""
        since = beginning()
        with torch.enable_grad():
            output = output_of(self.model, batch, self.output)
            output = output if whatever else checked(output, batch.samples)
            scores, target = self.scores(output, target, batch)
            return Graph(scores, self.parameters, output.detach(), since=since), target

    def scores(
        self, output: Tensor, target: Tensor | None, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """The scores of an output, and the target that they were made with."""
        with without_autocast():
            return scored(self.score, output, target, batch)

    def few(
        self, batch: Batch, target: Tensor | None, samples: int
    ) -> tuple[Graph, Batch, Tensor | None]:
        """The first few samples of a batch: their graph, they, and their targets."""
        part, cut = batch.take(0, samples), None if target is None else target[:samples]
        try:
            return self(part, cut)[0], part, cut
        except RetainError:
            raise
        except BROKEN as error:
            if shortage(error):
                raise
            raise_size(self.model, batch, part)

    def look_for_writes(self, batch: Batch, *, ahead: bool) -> list[Graph]:
        """Find, once, the weights that a pass writes to, as those of `nn.Embedding(max_norm=…)`.

        And whether it writes to its inputs. If there is nothing of that, and `ahead` says that a
        few samples are to be looked at before the batch, their graph is in the list that comes
        back, and nowhere else.
        """
        found: list[Graph] = []
        if self.written is not None:
            return found
        with Writes(self.model) as writes, torch.enable_grad(), unrounded():
            try:
                few = batch.take(0, FEW).copied()
                marks = few.marks()
                if ahead:
                    found.append(self(few)[0])
                else:
                    few.call(self.model)
                self.overwrites = few.is_written_to(marks)
                # the copy of an input that needs a gradient has a past of its own
                if self.overwrites or any(given.requires_grad for given, _ in marks.values()):
                    found.clear()
            except (RetainError, *BROKEN) as error:
                if shortage(error):  # whatever is written to after that would not be known
                    raise
                found.clear()  # what else is wrong with the batch, the pass itself will say
        self.written = writes.weights
        return [] if self.written else found

    def written_aside(self) -> AbstractContextManager[None]:
        """Give such weights back as they were."""
        return weights_aside(self.written) if self.written else nullcontext()
