"""Whether a sample's output is its own: alone as in a batch, and each time the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from retain.errors import RetainError
from retain.per_sample.blame import BROKEN, raise_interaction, raise_size
from retain.per_sample.precision import Precision
from retain.per_sample.same import same
from retain.per_sample.switches import unrounded
from retain.samples.batches import Batch, tensors_in
from retain.samples.outputs import OutputPicker, output_of

MOST = 4  # samples of a batch that are computed alone as well, one in SHARE at most
SHARE = 8
CLOSELY = 8  # kinds of batches that are looked at so; of later ones a single sample

Kind = tuple[int, tuple[torch.Size, ...]]


class Company:
    """Looks at batches as they come: a few of the samples of each new kind, also alone.

    Of how many samples and what shapes a batch is decides whether they can be seen to interact:
    experts with a capacity, for one, drop tokens only when many want the same.

    Where a card rounds operands (TF32), a deep network can make much of the other algorithms that
    it takes for another number of samples. So outputs that differ are computed once more without
    such rounding, and only what differs there as well is refused.
    """

    def __init__(self, model: nn.Module, output: Callable[[], OutputPicker]) -> None:
        self.model, self.output = model, output
        self._kinds: set[Kind] = set()
        self._largest = 0
        self._choice = random.Random(0)

    def refuse_few(
        self, few: Batch, together: Tensor, alone: list[Tensor] | None, precision: Precision
    ) -> None:
        """Raise if the outputs of a few samples differ `together` and `alone`.

        None for `alone`: the model cannot take one sample.

        Raises:
            ModelError: naming the module with which it begins.
        """
        fits = alone is not None and all(
            o.shape[1:] == together.shape[1:] and len(o) == 1 for o in alone
        )
        if not (fits and alone and same(torch.cat(alone), together, precision)):
            raise_interaction(self.model, few, precision)

    def refuse_chance(self, batch: Batch, output: Tensor, precision: Precision) -> None:
        """Raise if the model gives another output when it is called once more.

        Raises:
            ModelError: naming the module with which it begins.
        """
        if same(self._again(batch), output, precision):
            return
        with unrounded():
            if not same(self._again(batch), self._again(batch), precision):
                raise_interaction(self.model, batch, precision)

    def look(self, batch: Batch, together: Tensor, precision: Precision) -> None:
        """Raise if samples of a batch of a new kind have other outputs when they are alone.

        Raises:
            ModelError: naming the module with which it begins.
        """
        kind = (batch.samples, tuple(t.shape for t in tensors_in((batch.args, batch.kwargs))))
        if kind in self._kinds:
            return
        closely = len(self._kinds) < CLOSELY or batch.samples > self._largest
        count = min(MOST, max(1, batch.samples // SHARE)) if closely else 1
        self._kinds.add(kind)
        self._largest = max(self._largest, batch.samples)
        others = self._choice.sample(range(batch.samples - 1), min(count, batch.samples) - 1)
        for k in (*others, batch.samples - 1):  # where there are places, the last finds none
            one = batch.take(k, k + 1)
            if self._alike(batch, one, together[k : k + 1], precision):
                continue
            with unrounded():
                if not self._alike(batch, one, self._again(batch)[k : k + 1], precision):
                    raise_interaction(self.model, batch, precision)

    def _alike(self, batch: Batch, one: Batch, own: Tensor, precision: Precision) -> bool:
        """Whether a sample's `own` part of the outputs of a batch is what it has alone."""
        try:
            alone = self._again(one)
        except RetainError:
            raise
        except BROKEN:
            raise_size(self.model, batch, one)
        if alone.shape != own.shape:  # as long as the longest of a batch, perhaps
            alone, own = alone.norm()[None], own.norm()[None]
        return same(alone, own, precision)

    def _again(self, batch: Batch) -> Tensor:
        with torch.enable_grad():  # as a model may want that puts hooks on its tensors
            return output_of(self.model, batch, self.output()).detach()
