"""Which sample each row belongs to, where rows are no samples: patches, nodes, packed texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from retain.samples.containers import Path

NOBODY = -1  # the owner of a row that does not count, such as padding
OUTPUT = "output"  # under this name, samples_of may speak of the output's rows
BAGS = "bags"
TEXTS = "texts that are packed into one row"

# Names of inputs that count: positions at which samples begin, with and without the end.
BOUNDARIES = ("cu_seq", "cu_seqlens", "ptr", "offsets")


@dataclass(frozen=True)
class Rows:
    """Which sample each row belongs to.

    Attributes:
        owners: for each kind of rows the sample of every row, [rows] or [rows, positions] where
            the positions of a row belong to several samples; −1 is nobody's.
        samples: how many samples there are.
        widths: for each kind, the most rows that a sample has in the batch that this was cut from.
        named: input → which kind its rows are; for others the shape says.
        numbers: inputs that are themselves the numbers of samples → the number of the first.
        indices: inputs whose values count rows of the first kind, as edges of a graph do.
        measures: inputs that say how many rows each sample has, or at which row it begins.
        others: inputs that have no such rows, of however many rows a part of the batch is.
        output: which kind the rows of the output are; None where it has one per sample.
        what: what the rows are, for messages.
    """

    owners: tuple[Tensor, ...]
    samples: int
    widths: tuple[int, ...]
    named: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    indices: frozenset[str] = frozenset()
    measures: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    output: int | None = None
    what: str = "rows"

    @classmethod
    def of(cls, owners: tuple[Tensor, ...], samples: int, **more: Any) -> Rows:
        """With the widths that the owners have."""
        widths = tuple(int(_counts(ids, samples).max()) for ids in owners)
        return cls(owners, samples, widths, **more)

    def to(self, device: torch.device) -> Rows:
        """The same on another device."""
        return replace(self, owners=tuple(ids.to(device) for ids in self.owners))

    def without_the_last(self) -> Rows:
        """The same, if the last sample has no row of its own, as an offset that only ends one."""
        return replace(self, samples=self.samples - 1)

    @property
    def last_is_empty(self) -> bool:
        """Whether no row belongs to the last sample."""
        return self.samples > 1 and not any((ids == self.samples - 1).any() for ids in self.owners)

    @property
    def has_gaps(self) -> bool:
        """Whether no row belongs to some of the samples."""
        return len(self._present()) < self.samples

    def without_gaps(self) -> Rows:
        """The same, if only those that have rows are samples: numbers are of a whole data set."""
        present = self._present()
        owners = (
            torch.where(ids < 0, ids, torch.searchsorted(present, ids)) for ids in self.owners
        )
        gone = ("owners", "samples", "widths")
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in gone}
        return Rows.of(tuple(owners), len(present), **kept)

    def _present(self) -> Tensor:
        every: Tensor = torch.cat([ids.flatten() for ids in self.owners]).unique()
        present: Tensor = every[every >= 0]
        return present

    # ---- inputs ----

    def take(self, start: int, stop: int) -> Rows:
        """Which rows belong to which of the samples `start` to `stop`, after they were cut out."""
        return replace(
            self,
            owners=tuple(_cut_out(ids, ids, start, stop) - start for ids in self.owners),
            samples=stop - start,
        )

    def cut(self, path: Path, tensor: Tensor, start: int, stop: int) -> Tensor | None:
        """What some of the samples have of an input; None if its rows are no such rows."""
        name = str(path[-1])
        if self._is_boundary(name, tensor):
            counts = _counts(self.owners[0], self.samples)[start:stop]
            ends = counts.cumsum(0).to(tensor.dtype)
            first = tensor[:1] - tensor[:1]
            return torch.cat([first, ends])[: len(counts) + len(tensor) - self.samples]
        if name in self.indices:
            return self._renumbered(tensor, start, stop)
        over_pairs = name == "attention_mask" and tensor.ndim > 2
        ids = None if over_pairs else self._owners_of(name, tensor)
        if ids is None:
            return self._square(tensor, start, stop)
        if name in self.numbers:
            return _cut_out(ids, ids, start, stop) - start + self.numbers[name]
        if tensor.shape[: ids.ndim] == ids.shape:
            return _cut_out(tensor, ids, start, stop)
        if ids.ndim == 2 and tensor.shape[-2:] == ids.shape:  # positions in several directions
            return _cut_out(tensor.movedim((-2, -1), (0, 1)), ids, start, stop).movedim(
                (0, 1), (-2, -1)
            )
        if len(tensor) == 1:  # the same for every row
            return _cut_out(tensor.expand(*ids.shape, *tensor.shape[2:]), ids, start, stop)
        return _cut_out(tensor, ids[0], start, stop)

    def among(self, inputs: Mapping[str, Tensor]) -> Rows:
        """The same, with `others` as the whole of a batch shows them.

        In a part of it there may be as many rows as samples. Where the whole has as many, those
        that samples_of does not name have one for each sample, if it names any.
        """
        others = {
            name
            for name, tensor in inputs.items()
            if self._owners_of(name, tensor) is None
            or (self.named and name not in self.named and tensor.shape[:1] == (self.samples,))
        }
        return replace(self, others=frozenset(others))

    def _owners_of(self, name: str, tensor: Tensor) -> Tensor | None:
        if name in self.named:
            return self.owners[self.named[name]]
        if name in self.others:
            return None
        for ids in self.owners:
            shape = tuple(tensor.shape)
            if shape[: ids.ndim] == ids.shape:
                return ids
            if ids.ndim == 2 and (
                shape == (1, ids.shape[1])
                or (len(ids) == 1 and shape[:1] == ids.shape[1:])
                or (name == "position_ids" and shape[-2:] == ids.shape)
            ):
                return ids
        return None

    def _is_boundary(self, name: str, tensor: Tensor) -> bool:
        integers = tensor.ndim == 1 and not tensor.is_floating_point()
        fits = len(tensor) in (self.samples, self.samples + 1) if tensor.ndim else False
        if not (integers and fits):
            return False
        return name.startswith(BOUNDARIES) or (name in self.measures and int(tensor[0]) == 0)

    def _renumbered(self, index: Tensor, start: int, stop: int) -> Tensor:
        """Those pairs of rows that are there, with the numbers that the rows have now."""
        ids = self.owners[0]
        there = (ids >= start) & (ids < stop)
        kept = there[index].reshape(-1, index.shape[-1]).all(0)
        return (there.cumsum(0) - 1)[index[..., kept]]

    def _square(self, tensor: Tensor, start: int, stop: int) -> Tensor | None:
        """Of a mask [rows, …, positions, positions], who sees whom among what was cut out."""
        for ids in self.owners:
            if ids.ndim != 2 or tensor.ndim < 3 or tensor.shape[-2:] != (ids.shape[1],) * 2:
                continue
            there = (ids >= start) & (ids < stop)
            sizes = there.sum(1).tolist()
            forbidden = float(tensor.min()) if tensor.is_floating_point() else 0
            total = sum(sizes)
            mask = tensor.new_full((1, *tensor.shape[1:-2], total, total), forbidden)
            begin = 0
            for row, size in enumerate(sizes):
                own = tensor[min(row, len(tensor) - 1)]
                at, end = there[row].nonzero().flatten(), begin + size
                mask[0, ..., begin:end, begin:end] = own.index_select(-2, at).index_select(-1, at)
                begin = end
            return mask
        return None

    # ---- outputs ----

    def arranged(self, output: Tensor) -> Tensor:
        """`output` as [samples, rows of each, …], zero where a sample has fewer than others.

        An output that has one row per sample stays as it is, and one that does not fit.
        """
        at = self.output
        if at is None or output.shape[: self.owners[at].ndim] != self.owners[at].shape:
            return output
        ids, width = self.owners[at], self.widths[at]
        flat, owner = output.flatten(0, ids.ndim - 1), ids.flatten()
        in_order = torch.arange(self.samples, device=owner.device).repeat_interleave(width)
        if torch.equal(owner, in_order):
            return flat.reshape(self.samples, width, *flat.shape[1:])
        rows = flat.new_zeros(self.samples * width, *flat.shape[1:])
        counted = owner != NOBODY
        places = owner * width + _places(owner)
        rows = rows.index_copy(0, places[counted], flat[counted])
        return rows.view(self.samples, width, *flat.shape[1:])

    def counted(self, arranged: Tensor) -> Tensor | None:
        """[samples, rows of each]: which rows of an arranged output are really there."""
        if self.output is None or arranged.ndim < 2:
            return None
        counts = _counts(self.owners[self.output], self.samples)
        return torch.arange(arranged.shape[1], device=counts.device) < counts[:, None]

    def readings(self, output: Tensor) -> list[int | None]:
        """What the rows of an output may be: which kind of rows, or None for one per sample."""
        if OUTPUT in self.named:
            return [self.named[OUTPUT]]
        found: list[int | None] = [None] if output.shape[:1] == (self.samples,) else []
        return found + [
            at for at, ids in enumerate(self.owners) if output.shape[: ids.ndim] == ids.shape
        ]

    def same(self, one: int | None, other: int | None) -> bool:
        """Whether two readings say the same of every row."""
        plain = torch.arange(self.samples, device=self.owners[0].device)
        ids = [plain if at is None else self.owners[at] for at in (one, other)]
        return torch.equal(*ids)


def _counts(ids: Tensor, samples: int) -> Tensor:
    """[samples]: how many rows each has."""
    return torch.bincount(ids[ids != NOBODY].flatten(), minlength=samples)


def _places(owner: Tensor) -> Tensor:
    """[rows]: the place of every row among those of its sample, in their order."""
    order = owner.argsort(stable=True)
    sorted_ = owner[order]
    begins = torch.searchsorted(sorted_, sorted_)
    places = torch.empty_like(owner)
    places[order] = torch.arange(len(owner), device=owner.device) - begins
    return places


def _cut_out(tensor: Tensor, ids: Tensor, start: int, stop: int) -> Tensor:
    """The rows of samples `start` to `stop`; positions of several rows become one row."""
    chosen = tensor[(ids >= start) & (ids < stop)]
    return chosen[None] if ids.ndim == 2 else chosen
