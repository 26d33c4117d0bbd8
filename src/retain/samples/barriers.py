"""Whether the texts in a row are kept apart: tried, by changing one of them.

Inputs of any name may number the texts that are packed into rows, or other things: sentences of a
pair, turns of a talk. They number texts if what stands in one has no influence on what the model
gives for the others, though it has on the rest of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retain.samples.batches import Batch
from retain.samples.containers import DESCEND, Path, rebuilt
from retain.samples.probe import ModelProbe, same
from retain.samples.rows import NOBODY

# Parts of names of inputs that say where or of what kind a token is, and not which one.
BESIDE = ("mask", "position", "type", "pos_id", "input_pos", "bbox", "length")
CLOSELY = 1e-3  # of the usual tolerance: a little influence is influence


@dataclass(frozen=True)
class Barrier:
    """A batch of packed rows, perhaps, and the model that is to be called with it.

    Attributes:
        probe: calls the model.
        batch: with a row for each sample, as yet.
        numbering: the inputs that may number texts; they are never changed.
    """

    probe: ModelProbe
    batch: Batch
    numbering: Collection[str]

    def is_between(self, ids: Tensor) -> bool:
        """Whether the texts `ids` [rows, positions] have no influence on each other."""
        whole, rows = self.probe.tried(self.batch)
        texts = int(ids.max()) + 1
        if rows == texts != len(ids):
            return True  # it gives one output for each
        if whole is None or whole.shape[:2] != ids.shape:
            return False
        held = torch.stack([(row[1:] != row[:-1]).sum() for row in ids])
        at = int(held.argmax())
        own = ids[at]
        present = own[own != NOBODY].unique_consecutive()
        for text in (present[0], present[-1]):
            inside = own == text
            changed = self._changed_at(at, inside, whole)
            if changed is None or bool((changed & ~inside & (own != NOBODY)).any()):
                return False
            if not bool((changed & inside).any()):
                return False
        return self._has_reach(at, own, whole)

    def _has_reach(self, at: int, own: Tensor, whole: Tensor) -> bool:
        """Whether, in the longest text, an end has influence on another position."""
        longest = own[own != NOBODY].mode().values
        places = (own == longest).nonzero().flatten()
        for place in (places[0], places[-1]):
            one = torch.zeros_like(own, dtype=torch.bool)
            one[place] = True
            changed = self._changed_at(at, one, whole)
            if changed is not None and bool((changed & ~one & (own == longest)).any()):
                return True
        return False

    def _changed_at(self, at: int, positions: Tensor, whole: Tensor) -> Tensor | None:
        """[T] of bools: whose output is another if these positions of a row hold other tokens."""

        def change(path: Path, part: object) -> object:
            if not isinstance(part, Tensor):
                return DESCEND
            name = str(path[-1])
            beside = name in self.numbering or any(one in name for one in BESIDE)
            if beside or part.shape[:2] != whole.shape[:2] or part.dtype == torch.bool:
                return part
            if part.ndim == 2 and part.is_floating_point():
                return part
            return _other(part, at, positions)

        args, kwargs = rebuilt((self.batch.args, self.batch.kwargs), change)
        output, _ = self.probe.tried(replace(self.batch, args=args, kwargs=kwargs))
        if output is None or output.shape != whole.shape:
            return None
        pairs = zip(output[at], whole[at], strict=True)
        return torch.tensor(
            [not same(one[None], other[None], CLOSELY) for one, other in pairs],
            device=positions.device,
        )


def _other(tensor: Tensor, at: int, positions: Tensor) -> Tensor:
    """The tensor with other values there, all of which it holds elsewhere."""
    new = tensor.clone()
    if tensor.is_floating_point():
        new[at, positions] = -tensor[at, positions].roll(1, -1)
        return new
    known = tensor.unique()
    place = torch.searchsorted(known, tensor[at, positions])
    new[at, positions] = known[(place + 1) % len(known)]
    return new
