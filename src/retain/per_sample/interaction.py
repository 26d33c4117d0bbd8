"""Whether a sample's output is its own: alone as in a batch, and each time the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from retain.errors import RetainError
from retain.per_sample.blame import BROKEN, another, raise_interaction, raise_padded, raise_size
from retain.per_sample.precision import Precision
from retain.per_sample.same import same
from retain.per_sample.switches import unrounded
from retain.samples.batches import Batch, tensors_in
from retain.samples.outputs import OutputPicker, output_of

MOST = 4  # samples of a batch that are computed alone as well, one in SHARE at most
SHARE = 8
DRAWN = 32  # further calls of a model that draws random numbers
CLOSELY = 8  # kinds of batches that are looked at so; of later ones a single sample

BatchShape = tuple[int, tuple[torch.Size, ...]]


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
        self._kinds: set[BatchShape] = set()
        self._largest = 0
        self._draws = False  # whether the model was seen to draw random numbers
        self._lucky = False  # whether it was called again and again, and nothing changed
        self._choice = random.Random(0)

    def refuse_few(
        self, few: Batch, together: Tensor, alone: list[Tensor] | None, precision: Precision
    ) -> None:
        """Raise if the outputs of a few samples differ `together` and `alone`.

        None for `alone`: the model cannot take one sample.

        Raises:
            ModelError: naming the module with which it begins.
        """
        for k, one in enumerate(alone or ()):
            refuse_padded(together[k : k + 1], one, precision)
        alone = None if alone is None else [_lengthened(one, together) for one in alone]
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
        if not self._changes(batch, output, precision):
            return
        with unrounded():
            if self._changes(batch, self._again(batch), precision):
                raise_interaction(self.model, batch, precision)

    def refuse_luck(self, batch: Batch, output: Tensor, precision: Precision) -> None:
        """Raise if a model that draws random numbers gives another output once more.

        Chance that decides rarely, as over paths that are dropped, may spare a batch or two.

        Raises:
            ModelError: naming the module with which it begins.
        """
        if not self._draws:
            return
        look = self._differs if self._lucky else self._changes
        self._lucky = True
        if look(batch, output, precision):
            with unrounded():
                if self._changes(batch, self._again(batch), precision):
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
            refuse_padded(own, alone, precision)
            alone, own = alone.norm()[None], own.norm()[None]
        return same(alone, own, precision)

    def _changes(self, batch: Batch, output: Tensor, precision: Precision) -> bool:
        """Whether the output is another in a further call, or after one with something else."""
        if self._differs(batch, output, precision):
            return True
        if self._draws and any(self._differs(batch, output, precision) for _ in range(DRAWN)):
            return True
        try:
            self._again(another(batch))
        except Exception:
            return False  # the model can make nothing of it
        return self._differs(batch, output, precision)

    def _differs(self, batch: Batch, output: Tensor, precision: Precision) -> bool:
        """Whether the output is another when the model is called once more."""
        return not same(self._again(batch), output, precision)

    def _again(self, batch: Batch) -> Tensor:
        before = None if self._draws else _random_state(batch)
        with torch.enable_grad():  # as a model may want that puts hooks on its tensors
            output = output_of(self.model, batch, self.output()).detach()
        self._draws = self._draws or _random_state(batch) != before
        return output


def _random_state(batch: Batch) -> tuple[object, ...]:
    """How the generators stand that everybody draws from, on the CPU and where the batch lies."""
    states = [torch.get_rng_state()]
    devices = {t.device for t in batch.inputs().values() if t.device.type == "cuda"}
    states += [torch.cuda.get_rng_state(device) for device in devices]
    name, keys, *rest = np.random.get_state(legacy=True)
    drawn = (random.getstate(), name, np.asarray(keys).tobytes(), *rest)
    return (*(state.numpy().tobytes() for state in states), *drawn)


def _lengthened(alone: Tensor, together: Tensor) -> Tensor:
    """`alone`, with nothing at as many positions as `together` has, if it has fewer."""
    if alone.ndim < 3 or alone.ndim != together.ndim or alone.shape[2:] != together.shape[2:]:
        return alone
    more = together.shape[1] - alone.shape[1]
    return (
        torch.cat([alone, alone.new_zeros(len(alone), more, *alone.shape[2:])], 1)
        if more > 0
        else alone
    )


def refuse_padded(own: Tensor, alone: Tensor, precision: Precision) -> None:
    """Raise if a sample's `own` output in a batch goes on after the positions that it has `alone`.

    Unless nothing stands there.

    Raises:
        ModelError: it does; says what to do.
    """
    if own.ndim < 3 or alone.ndim != own.ndim or len(alone) != 1:
        return
    positions = alone.shape[1]
    if own.shape[1] <= positions or own.shape[2:] != alone.shape[2:]:
        return
    if same(own[:, :positions], alone, precision) and bool(own[:, positions:].any()):
        raise_padded(own, alone)
