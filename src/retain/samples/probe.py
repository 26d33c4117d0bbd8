"""What names and shapes leave open is tried: a few samples must give what they give among all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, ModelError
from retain.samples.batches import Batch
from retain.samples.calls import asks_for
from retain.samples.containers import Path
from retain.samples.outputs import OutputPicker, as_picked, picked_from
from retain.samples.rows import Rows

FEW = 3  # samples that a kind of batch is tried with
MANY = 5  # parts that may be shared by chance, of which every choice is tried


@dataclass(frozen=True)
class Kind:
    """What was found out about batches of one kind.

    Attributes:
        counter: what counts the samples.
        shared: what all samples share.
        sure: whether it was found by trying, and holds for every batch of the kind.
        per_position: whether the output [n, T] has one number for each position.
        positions: which dimension of the output [n, …] counts positions.
        unmasked: the shape of an output that has other positions than any mask.
    """

    counter: Path
    shared: frozenset[Path]
    sure: bool = False
    per_position: bool = False
    positions: int = 1
    unmasked: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ModelProbe:
    """A model to be called, and what picks its output."""

    model: nn.Module
    pick: OutputPicker

    # ---- calls ----

    def tried(self, batch: Batch) -> tuple[Tensor | None, int | None]:
        """F(x), or None if there is none; and how many samples what the model returns is of."""
        try:
            given = batch.copied()
            returned = given.call_without_graph(self.model)
            if isinstance(returned, (tuple, list)) and all(
                isinstance(r, Mapping) for r in returned
            ):
                return None, len(returned)
            output = picked_from(returned, batch, self.pick, given)
        except Exception:
            return None, None
        is_one = isinstance(output, Tensor) and output.ndim > 0
        return (output.detach(), len(output)) if is_one else (None, None)

    def picked(self, batch: Batch) -> Tensor:
        """What is picked from what the model returns, as it is."""
        given = batch.copied()
        output = as_picked(given.call_without_graph(self.model), given, self.pick)
        return output.detach() if isinstance(output, Tensor) else torch.empty(())

    # ---- what holds the samples ----

    def kind(self, batch: Batch) -> Kind | None:
        """What counts samples, and what all share; None if an output of one row does not tell.

        What counts is what the output follows; shared is what has to stay whole for a few samples
        to give what they give among all.

        Raises:
            InputError: what the output follows cannot be told.
        """
        whole, rows = self.tried(batch)
        found = self._counting(batch, whole, rows)
        if found is None or whole is None or whole.ndim < 2:
            return found
        batch = replace(batch.counted_by(found.counter), shared=found.shared)
        if whole.ndim == 2:
            per_position = self._has_one_per_position(batch, whole)
            in_a_row = not per_position and self._has_positions_in_a_row(batch, whole)
            unmasked = tuple(whole.shape) if in_a_row else None
            return replace(found, per_position=per_position, unmasked=unmasked)
        positions = self._positions(batch, whole)
        if positions is not None:
            return replace(found, positions=positions)
        return replace(found, unmasked=tuple(whole.shape) if batch.masks() else None)

    def _counting(self, batch: Batch, whole: Tensor | None, rows: int | None) -> Kind | None:
        counts = batch.counts()
        follow = [path for path, count in counts.items() if count == rows]
        counter = follow[0] if follow else next(iter(counts))
        batch = batch.counted_by(counter)
        n = batch.samples
        shared = {path for path, count in counts.items() if count not in (n, 1)}
        holders = {path[:-1] for path in counts if path not in shared}
        shared = {path for path in shared - holders if not _inside(path, batch.lists)}
        if n == 1:  # or an output of all samples together
            others = (p for p, count in counts.items() if count > 1 and not _inside(p, {counter}))
            return None if any(others) else Kind(counter, frozenset())
        if whole is None or len(whole) != n:
            return Kind(counter, frozenset(shared))
        self._refuse_counter(batch, counter, whole)
        # a list of n tensors that have n rows themselves may hold one of each sample, or all
        readings = [counter, *(path for path in follow if path != counter and path in holders)]
        for reading in readings:
            read = batch.counted_by(reading)
            several = read.parts_that_count()
            chosen = self._shared_by_chance(read, several, whole)
            if chosen is not None:
                left = [path for path in [reading, *several] if path not in chosen]
                return Kind(left[0], frozenset(shared.union(chosen)), sure=True)
        if shared:
            self._refuse_rows(batch, shared, whole)
        return Kind(counter, frozenset(shared))

    def _positions(self, batch: Batch, whole: Tensor) -> int | None:
        """The dimension of an output [n, …] that is as long as a mask; None if there is none.

        Where it is not the first that it could be, the one that is shorter for shorter inputs.
        """
        fit = [d for d in range(1, whole.ndim) if batch.kept(whole.shape[d]) is not None]
        usual = 1 if 1 in fit else None
        if not fit or fit == [1] or whole.shape[fit[0]] < 2:
            return usual
        output, _ = self.tried(batch.shortened(whole.shape[fit[0]]))
        if output is None or output.ndim != whole.ndim:
            return usual
        follow = [d for d in fit if output.shape[d] == whole.shape[d] - 1]
        return follow[0] if follow else usual

    def _has_one_per_position(self, batch: Batch, whole: Tensor) -> bool:
        """Whether an output [n, T] as long as a mask is shorter where the inputs are shorter."""
        positions = whole.shape[1]
        if positions < 2 or batch.kept(positions) is None:
            return False
        output, _ = self.tried(batch.shortened(positions))
        return output is not None and output.shape == (len(whole), positions - 1)

    def _has_positions_in_a_row(self, batch: Batch, whole: Tensor) -> bool:
        """Whether an output [n, m] has as many numbers for each position of a mask, in one row."""
        long = {mask.shape[1] for mask in batch.masks() if not mask.all()}
        for positions in long:
            each, rest = divmod(whole.shape[1], positions)
            if each > 1 and not rest:
                output, _ = self.tried(batch.shortened(positions))
                if output is not None and output.shape == (len(whole), each * (positions - 1)):
                    return True
        return False

    def _refuse_rows(self, batch: Batch, shared: set[Path], whole: Tensor) -> None:
        """Samples that are not the same alone, though nothing in the model mixes them by mode."""
        again, _ = self.tried(batch)
        if again is None or not same(again, whole) or any(m.training for m in self.model.modules()):
            return  # for the engine to say
        counts, (first, *_) = batch.counts(), batch.parts_that_count()
        others = ", ".join(f"'{_spoken(path)}' {counts[path]}" for path in sorted(shared, key=str))
        raise InputError(
            f"The batch holds {batch.samples} samples by '{_spoken(first)}', but a few of them "
            f"alone, with the other inputs unchanged ({others}), give another output than in the "
            "whole batch. If the rows of those inputs belong to samples (patches, boxes, nodes of "
            "a graph), say which row belongs to which sample with samples_of=…. If not, the "
            "samples influence each other in the model, and importance per sample is not defined."
        )

    def _refuse_counter(self, batch: Batch, counter: Path, whole: Tensor) -> None:
        """What the output follows is not what comes first: then all samples must share the first.

        They do if every one of them changes when half of it is missing.
        """
        counts, rows = batch.counts(), batch.samples
        first = next(path for path in counts if not _inside(path, {counter}))
        size = counts[first]
        if size in (1, rows):
            return
        others = {path for path, count in counts.items() if count != size}
        half = replace(batch.counted_by(first), shared=frozenset(others)).take(0, size // 2)
        output, found = self.tried(half)
        if output is not None and found == rows:
            if output.shape != whole.shape:
                return
            if bool((output != whole).flatten(1).any(1).all()):
                return
        raise InputError(
            f"The model's output has {rows} rows, as '{_spoken(counter)}' has, and not {size}, as "
            f"'{_spoken(first)}' has. If these rows belong to samples (patches, boxes, nodes of a "
            "graph), say which row is whose with samples_of=…; if each of them is a sample, give "
            f"'{_spoken(counter)}' before '{_spoken(first)}'."
        )

    def _shared_by_chance(
        self, batch: Batch, several: list[Path], whole: Tensor
    ) -> tuple[Path, ...] | None:
        """The fewest parts to leave whole for a few samples to give what they give among all.

        None, if they never do.
        """
        few = min(FEW, batch.samples - 1)
        most = len(several) - 1 if len(several) <= MANY else 1
        for count in range(most + 1):
            for chosen in combinations(several, count):
                part = replace(batch, shared=frozenset(chosen)).take(0, few)
                output, rows = self.tried(part)
                if output is not None and rows == few and same(output, whole[:few]):
                    return chosen
        return None

    # ---- rows that are no samples ----

    def readings(self, batch: Batch, rows: Rows) -> int | None:
        """What the rows of the output are: which kind of rows, or None for one per sample.

        Raises:
            InputError: two readings fit, and say different things.
        """
        found = rows.readings(self.picked(batch))
        last = rows.samples - 1
        for start, stop in ((0, 1), (last, last + 1), (0, last)):
            if len(found) > 1 and start < stop <= last:
                part = batch.take(start, stop)
                fits = replace(rows, named={}).take(start, stop).readings
                found = [at for at in fits(self.picked(part)) if at in found]
        different = [at for at in found[1:] if not rows.same(found[0], at)]
        if different:
            raise InputError(
                "The rows of the model's output may belong to samples in more than one way: "
                "several inputs have as many, or there are as many as samples. Say which with "
                'samples_of=lambda batch: {…, "output": …}, the number of a sample for each.'
            )
        return found[0] if found else None

    def keeping_apart(self, batch: Batch) -> dict[str, Any]:
        """With which further arguments texts in one row do not see each other.

        Transformers look at position ids only where they make no cache.

        Raises:
            ModelError: texts see each other.
        """
        ways: list[dict[str, Any]] = [{}]
        if "use_cache" not in batch.kwargs and asks_for(self.model, "use_cache"):
            ways.append({"use_cache": False})
        last = batch.samples - 1
        for more in ways:
            called = replace(batch, kwargs=batch.kwargs | more)
            together, _ = self.tried(called)
            if together is None or len(together) != batch.samples:
                return more  # said where the output is looked at
            alone = [self.tried(called.take(k, k + 1))[0] for k in (0, last)]
            if all(
                a is not None and same(a, together[k : k + 1]) for a, k in zip(alone, (0, last))
            ):
                return more
        ids = batch.rows.owners[0] if batch.rows is not None else torch.empty(1)
        raise ModelError(
            f"{batch.samples} texts are packed into {len(ids) if ids.ndim == 2 else 1} row(s), and "
            "the model does not keep them apart: a text has another output alone. Importance is "
            "defined per text. Call the model so that packed texts do not see each other (most "
            "models of transformers: position_ids that restart, no attention_mask, no cache; or "
            "flash attention), or observe one text per row, padded, with an attention_mask."
        )


def same(one: Tensor, other: Tensor, share: float = 1.0) -> bool:
    """Equal up to rounding, or to a share of what may be that."""
    if one.shape != other.shape:
        return False
    tolerance = share * {8: 1e-6, 4: 1e-3, 2: 1e-1}.get(one.dtype.itemsize, 1e-3)
    error = torch.linalg.vector_norm((one - other).double())
    return bool(error <= tolerance * torch.linalg.vector_norm(other.double()))


def _inside(path: Path, lists: Collection[Path]) -> bool:
    """Whether it is the way to an item of one of these lists."""
    return any(path[:at] in lists for at in range(1, len(path)))


def _spoken(path: Path) -> str:
    return ".".join(map(str, path))
