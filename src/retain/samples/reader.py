"""From what a data loader gives to a batch that a model takes, and what in it holds the samples.

Where names and shapes leave it open, the model itself decides: it is called with a few samples, and
what it gives for them must be what it gives for them among all. That is done once for every kind of
batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retain import arguments
from retain.errors import InputError, StateError
from retain.samples.barriers import Barrier
from retain.samples.batches import Batch, input_of
from retain.samples.calls import ModelCall, by_fields, calls, needs_several, side_by_side
from retain.samples.containers import DESCEND, Path, rebuilt
from retain.samples.outputs import OutputPicker
from retain.samples.owners import PaddingMask, SamplesOf, padding_beside, padding_said, rows_said
from retain.samples.packing import possible, rows_of
from retain.samples.probe import Kind, ModelProbe
from retain.samples.rows import BAGS, TEXTS, Rows
from retain.samples.suspicions import Suspicions

# Parts of the names of inputs that number texts in rows, if the model keeps these apart.
OF_TEXTS = ("segment", "seq", "doc", "text", "pack", "pos", "len", "cu_")
LOST = "(a function)"  # what a file says in place of one


class Reader:
    """Reads batch after batch, and remembers what it learned about each kind.

    Args:
        batch_dim: the dimension of the inputs that counts samples.
        samples_of: which sample each row belongs to, where rows are no samples: the name of an
            input that holds the numbers of samples, or a function of the batch that gives them, for
            all rows or as a mapping from the names of inputs (and "output").
        padding_mask: [n, T] of bools, True where there is padding: the name of an input, or a
            function of the batch.
    """

    def __init__(
        self,
        *,
        batch_dim: int = 0,
        samples_of: SamplesOf = None,
        padding_mask: PaddingMask = None,
    ) -> None:
        for name, given in (("samples_of", samples_of), ("padding_mask", padding_mask)):
            if not (given is None or isinstance(given, str) or callable(given)):
                raise InputError(
                    f"{name} is a {type(given).__name__}; expected the name of an input, or a "
                    "function of the batch."
                )
        self.batch_dim = arguments.whole("batch_dim", batch_dim, least=0)
        self.samples_of = samples_of
        self.padding_mask = padding_mask
        self._kinds: dict[object, Kind] = {}
        self._forms: dict[object, int] = {}
        self._outputs: dict[object, int | None] = {}  # what the rows of the output are
        self._apart: dict[object, dict[str, Any]] = {}  # what keeps packed texts apart
        self._ending: dict[object, bool] = {}  # whether the last offset begins no bag
        self._barriers: dict[object, bool] = {}  # whether an input keeps packed texts apart
        self._suspicions = Suspicions()

    def read(self, raw: Any, model: nn.Module, pick: OutputPicker, device: torch.device) -> Batch:
        """The batch in `raw`, on `device`. Call it inside `borrowed(model)`.

        Raises:
            InputError: it is none, or what was given for it does not fit.
            ModelError: texts that are packed into one row see each other.
            StateError: a function was given that a file could not hold.
        """
        for name in ("samples_of", "padding_mask"):
            if getattr(self, name) == LOST:
                raise StateError(
                    f"This memory was saved with {name}=…, a function that a file cannot hold. "
                    f"Set it again: memory.{name} = …"
                )
        _refuse_ragged(raw)
        forms = self._possible(raw, model)
        kind = _kind_of(raw)
        if len(forms) > 1 and kind not in self._forms:
            self._forms[kind] = self._first_that_runs(forms, model, device)
        form = forms[min(self._forms.get(kind, 0), len(forms) - 1)]
        batch = self._resolved(form, raw, model, pick, device)
        every = batch.masks()
        if any(not mask.any() for mask in every):
            raise InputError(
                "A mask leaves out every position of this batch. An attention_mask is 1 or True "
                "where there is text, a padding mask is True where there is none."
            )
        if not every:
            self._suspicions.of_batch(batch, ModelProbe(model, pick))
        return batch

    # ---- how the model is called ----

    def _possible(self, raw: Any, model: nn.Module) -> list[ModelCall]:
        """The ways in which a model may take it; the first is the usual one."""
        if hasattr(raw, "_fields"):
            return list(by_fields(raw, model))
        given, labels = input_of(raw)
        found = list(calls(given, labels, model, self._extra()))
        if isinstance(raw, (tuple, list)):
            several = list(side_by_side(raw, model))
            found = several + found if needs_several(model) else found + several
            alike = len({type(item) for item in raw}) == 1
            kinds = {(t.ndim, t.dtype) for t in raw if isinstance(t, Tensor)}
            if alike and len(kinds) < 2 and (not found or len(raw) > 1):
                found.append(ModelCall((list(raw),), {}, None))
        if not found:
            Batch.of(raw, batch_dim=self.batch_dim)  # which says what is expected
        return found

    def _extra(self) -> frozenset[str]:
        """Inputs that may be there for us alone."""
        keys = (self.samples_of, self.padding_mask)
        return frozenset(key for key in keys if isinstance(key, str))

    def _first_that_runs(
        self, forms: list[ModelCall], model: nn.Module, device: torch.device
    ) -> int:
        for at, form in enumerate(forms):
            try:
                form.batch(self.batch_dim, model).to(device)
                form.batch(self.batch_dim, model).to(device).copied().call_without_graph(model)
            except Exception:
                continue
            return at
        return 0

    # ---- what holds the samples ----

    def _resolved(
        self, form: ModelCall, raw: Any, model: nn.Module, pick: OutputPicker, device: torch.device
    ) -> Batch:
        parts = form.parts(self.batch_dim, model)
        named = parts.named()
        if self.samples_of is not None:
            rows: Rows | None = rows_said(self.samples_of, raw, named)
        else:
            rows = rows_of(named) if self.batch_dim == 0 else None
        batch = parts.counted() if rows is None else parts.described(samples=rows.samples)
        batch = batch.to(device)
        if self.padding_mask is not None:
            padding = padding_said(self.padding_mask, raw, named)
            batch = batch.described(padding=padding.to(device))
        elif rows is None and not batch.masks():
            beside = padding_beside(raw, named)
            if beside is not None and len(beside) == batch.samples:
                batch = batch.described(padding=beside.to(device))
        probe = ModelProbe(model, pick)
        if rows is None:
            batch = self._counted(batch, probe)
            rows = self._packed_unsaid(batch, named, probe)
        if rows is None:
            return batch
        rows = self._ended(rows, batch, probe).among(batch.named())
        lists = frozenset(batch.lists_of(rows.samples))
        shared = frozenset(path for path in batch.shared if str(path[-1]) not in rows.measures)
        batch = batch.described(
            rows=rows.to(device), samples=rows.samples, lists=lists, shared=shared
        )
        return self._arranged(batch, rows.to(device), probe)

    def _ended(self, rows: Rows, batch: Batch, probe: ModelProbe) -> Rows:
        """Without the last offset of bags, if it is where the last one ends, and no bag.

        And without numbers that no row has, unless an input or the output has a row for each.
        """
        if self.samples_of is not None and rows.has_gaps:
            inputs = (t for t in batch.inputs().values() if t.ndim)
            lengths = {*map(len, inputs), *probe.picked(batch).shape[:1]}
            return rows if rows.samples in lengths else rows.without_gaps()
        if rows.what != BAGS or not rows.last_is_empty:
            return rows
        kind = frozenset(batch.inputs())
        if kind not in self._ending:
            self._ending[kind] = len(probe.picked(batch)) == rows.samples - 1
        return rows.without_the_last() if self._ending[kind] else rows

    def _packed_unsaid(
        self, batch: Batch, named: dict[str, Tensor], probe: ModelProbe
    ) -> Rows | None:
        """The texts in its rows, if the model keeps them apart by an input of some other name."""
        if self.samples_of is not None or self.batch_dim != 0:
            return None
        found = possible(named)
        for name, rows in found.items():
            kind = (name, frozenset(named))
            if kind not in self._barriers:
                ids = rows.owners[0]
                self._barriers[kind] = Barrier(probe, batch, found).is_between(ids)
                if self._barriers[kind] and not any(part in name for part in OF_TEXTS):
                    self._suspicions.of_numbering(name, rows)
            if self._barriers[kind]:
                return rows
        return None

    def _counted(self, batch: Batch, probe: ModelProbe) -> Batch:
        """With the number of samples, and what all of them share, as its kind has it."""
        counts = batch.counts()
        kind = tuple((path, _rank(batch, path)) for path in counts)
        known = self._kinds.get(kind)
        if known is None:
            alone = set(counts.values()) == {1} and all(bool(m.all()) for m in batch.masks())
            if len(counts) < 2 or alone:
                return batch
            known = probe.kind(batch)
            if known is None:
                return batch
            if known.sure:
                self._kinds[kind] = known
        batch = batch.counted_by(known.counter).described(
            shared=known.shared, per_position=known.per_position, positions=known.positions
        )
        if known.unmasked is not None:
            self._suspicions.of_output(batch, known.unmasked)
        return batch

    def _arranged(self, batch: Batch, rows: Rows, probe: ModelProbe) -> Batch:
        """With what the rows of the output are; found out once for every kind.

        Raises:
            InputError: two readings fit, and say different things.
        """
        kind = frozenset(batch.inputs())
        if kind not in self._outputs:
            self._outputs[kind] = probe.readings(batch, rows)
        batch = batch.described(rows=replace(rows, output=self._outputs[kind]))
        if rows.what != TEXTS or rows.samples < 2:
            return batch
        self._suspicions.of_packed(batch, rows)
        if kind not in self._apart:
            self._apart[kind] = probe.keeping_apart(batch)
        return replace(batch, kwargs=batch.kwargs | self._apart[kind])


def _refuse_ragged(raw: Any) -> None:
    """Nothing, unless samples of several lengths lie behind one another in one object.

    Raises:
        InputError: they do; says what to give in its place.
    """

    def see(_path: Path, part: Any) -> Any:
        if isinstance(part, PackedSequence):
            raise InputError(
                "A batch holds a PackedSequence, whose samples cannot be taken apart; expected "
                "padded sequences: torch.nn.utils.rnn.pad_packed_sequence(batch), which gives "
                "their lengths, too. A model that takes packed ones can pack them itself."
            )
        if isinstance(part, Tensor) and part.is_nested:
            raise InputError(
                "A batch holds a nested tensor, whose samples cannot be taken apart; expected a "
                "padded one: torch.nested.to_padded_tensor(batch, 0.0), with a mask of what is "
                "padding (attention_mask, or padding_mask=…)."
            )
        return part if isinstance(part, Tensor) else DESCEND

    rebuilt(raw, see)


def _kind_of(raw: Any) -> object:
    """Batches of one kind are given to the model in the same way."""
    first = raw[0] if isinstance(raw, (tuple, list)) and raw else None
    count = len(raw) if isinstance(raw, (tuple, list)) else None
    return type(raw), type(first), getattr(first, "ndim", None), count


def _rank(batch: Batch, path: Path) -> int:
    tensor = batch.inputs().get(path)
    return -1 if tensor is None else tensor.ndim
