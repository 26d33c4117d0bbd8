"""From what a data loader gives to a batch that a model takes, and what in it holds the samples.

Where names and shapes leave it open, the model itself decides: it is called with a few samples, and
what it gives for them must be what it gives for them among all. That is done once for every kind of
batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from retain import masks
from retain.batches import Batch, input_of
from retain.calls import Call, calls
from retain.containers import Path, parts_of
from retain.errors import InputError, ModelError, StateError
from retain.outputs import OutputPicker, picked_from
from retain.packing import of_nodes, rows_of
from retain.rows import TEXTS, Rows

SamplesOf = str | Callable[[Any], Any] | None
PaddingMask = str | Callable[[Any], Tensor] | None

FEW = 3  # samples that a kind of batch is tried with
MANY = 5  # parts that may be shared by chance, of which every choice is tried
LOST = "(a function)"  # what a file says in place of one


@dataclass(frozen=True)
class Kind:
    """What was found out about batches of one kind: what counts samples, and what all share."""

    counter: Path
    shared: frozenset[Path]


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
        self.batch_dim = batch_dim
        self.samples_of = samples_of
        self.padding_mask = padding_mask
        self._kinds: dict[object, Kind] = {}
        self._forms: dict[object, int] = {}
        self._apart: set[object] = (
            set()
        )  # kinds of packed batches whose texts do not see each other
        self._warned: set[str] = set()

    def settings(self) -> dict[str, Any]:
        """Its arguments, as JSON can hold them."""
        return {
            "batch_dim": self.batch_dim,
            "samples_of": LOST if callable(self.samples_of) else self.samples_of,
            "padding_mask": LOST if callable(self.padding_mask) else self.padding_mask,
        }

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
            self._warn_of_padding(batch)
        return batch

    # ---- how the model is called ----

    def _possible(self, raw: Any, model: nn.Module) -> list[Call]:
        """The ways in which a model may take it; the first is the usual one."""
        given, labels = input_of(raw)
        found = list(calls(given, labels, model, self._extra()))
        if isinstance(raw, (tuple, list)):
            alike = len({type(item) for item in raw}) == 1 and not hasattr(raw, "_fields")
            kinds = {(t.ndim, t.dtype) for t in raw if isinstance(t, Tensor)}
            if alike and len(kinds) < 2 and (not found or len(raw) > 1):
                found.append(Call((list(raw),), {}, None))
        if not found:
            Batch.of(raw, batch_dim=self.batch_dim)  # which says what is expected
        return found

    def _extra(self) -> frozenset[str]:
        """Inputs that may be there for us alone."""
        keys = (self.samples_of, self.padding_mask)
        return frozenset(key for key in keys if isinstance(key, str))

    def _first_that_runs(self, forms: list[Call], model: nn.Module, device: torch.device) -> int:
        for at, form in enumerate(forms):
            try:
                form.batch(self.batch_dim, model).to(device)
                with torch.no_grad():
                    form.batch(self.batch_dim, model).to(device).call(model)
            except Exception:
                continue
            return at
        return 0

    # ---- what holds the samples ----

    def _resolved(
        self, form: Call, raw: Any, model: nn.Module, pick: OutputPicker, device: torch.device
    ) -> Batch:
        named = form.named(model)
        rows = self._rows(raw, named)
        padding = self._padding(raw, named)
        batch = form.batch(self.batch_dim, model, rows).to(device)
        if padding is not None:
            batch = replace(batch, padding=padding.to(device))
        if rows is not None:
            batch = replace(batch, rows=rows.to(device), samples=rows.samples)
            self._refuse_packed(batch, model, pick)
            return batch
        return self._counted(batch, model, pick)

    def _rows(self, raw: Any, named: dict[str, Tensor]) -> Rows | None:
        if self.samples_of is None:
            return rows_of(named) if self.batch_dim == 0 else None
        given = _looked_up(self.samples_of, raw, named, "samples_of")
        if isinstance(given, Mapping):
            owners = {str(name): _owners(ids, named) for name, ids in given.items()}
            samples = 1 + max(int(ids.max()) for ids in owners.values())
            named_rows = {name: at for at, name in enumerate(owners)}
            return Rows.of(tuple(owners.values()), samples, named=named_rows)
        ids = _owners(given, named)
        if ids.ndim == 2:
            return Rows.of((ids,), int(ids.max()) + 1)
        same = [n for n, t in named.items() if t.shape == ids.shape and torch.equal(t, given)]
        return of_nodes(named, ids, same[0] if same else None)

    def _padding(self, raw: Any, named: dict[str, Tensor]) -> Tensor | None:
        if self.padding_mask is None:
            return None
        mask = _looked_up(self.padding_mask, raw, named, "padding_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(f"padding_mask is {got}; expected a tensor [samples, positions].")
        return masks.padding(mask, "padding_mask")

    def _counted(self, batch: Batch, model: nn.Module, pick: OutputPicker) -> Batch:
        """With the number of samples, and what all of them share, as its kind has it."""
        counts = batch.counts()
        kind = tuple((path, _rank(batch, path)) for path in counts)
        known = self._kinds.get(kind)
        if known is None:
            if len(counts) < 2 or (batch.samples == 1 and set(counts.values()) == {1}):
                return batch
            known = self._found_out(batch, model, pick)
            if known is None:
                return batch
            self._kinds[kind] = known
        return replace(batch.counted_by(known.counter), shared=known.shared)

    def _found_out(self, batch: Batch, model: nn.Module, pick: OutputPicker) -> Kind | None:
        """What counts samples is what the output follows; what changes nothing else is shared."""
        counts = batch.counts()
        whole, rows = _tried(batch, model, pick)
        follow = [path for path, count in counts.items() if count == rows]
        counter = follow[0] if follow else next(iter(counts))
        batch = batch.counted_by(counter)
        n = batch.samples
        shared = {path for path, count in counts.items() if count not in (n, 1)}
        if n == 1 or whole is None or len(whole) != n:
            return Kind(counter, frozenset(shared)) if n > 1 else None
        several = batch.parts_that_count()
        if len(several) > 1:
            chosen = _shared_by_chance(batch, several, whole, model, pick)
            shared |= set(chosen)
            counter = next(path for path in [counter, *several] if path not in chosen)
        return Kind(counter, frozenset(shared))

    def _refuse_packed(self, batch: Batch, model: nn.Module, pick: OutputPicker) -> None:
        """Texts in one row must not see each other; tried once for every kind."""
        rows = batch.rows
        kind = frozenset(batch.inputs())
        if rows is None or rows.what != TEXTS or rows.samples < 2 or kind in self._apart:
            return
        together, _ = _tried(batch, model, pick)
        last = rows.samples - 1
        if together is None or len(together) != rows.samples:
            return  # said where the output is looked at
        alone = [_tried(batch.take(k, k + 1), model, pick)[0] for k in (0, last)]
        if all(
            one is not None and _same(one, together[k : k + 1]) for one, k in zip(alone, (0, last))
        ):
            self._apart.add(kind)
            return
        raise ModelError(
            f"{rows.samples} texts are packed into {len(rows.owners[0])} row(s), and the model "
            "does not keep them apart: a text has another output alone. Importance is defined per "
            "text. Use an attention that keeps packed texts apart (attn_implementation="
            '"flash_attention_2", or "sdpa" without an attention_mask, where the model takes '
            "position_ids that way), or observe one text per row, padded, with an attention_mask."
        )

    # ---- what may be meant otherwise ----

    def _warn_of_padding(self, batch: Batch) -> None:
        if "padded" in self._warned or batch.rows is not None:
            return
        for path, tensor in batch.inputs().items():
            if path in batch.shared or tensor.shape[:1] != (batch.samples,):
                continue
            token = masks.looks_padded(tensor)
            if token is not None:
                self._warned.add("padded")
                warnings.warn(
                    f"The rows of '{path[-1]}' look padded: they end (or begin) in {token}, in "
                    "runs of several lengths, and no mask says so. Padding then counts like text, "
                    "and importance depends on how far a text was padded. Pass attention_mask (a "
                    "tokenizer gives it), or say where there is padding with padding_mask=….",
                    stacklevel=4,
                )
                return


def _kind_of(raw: Any) -> object:
    """Batches of one kind are given to the model in the same way."""
    first = raw[0] if isinstance(raw, (tuple, list)) and raw else None
    return type(raw), type(first), getattr(first, "ndim", None)


def _rank(batch: Batch, path: Path) -> int:
    tensor = batch.inputs().get(path)
    return -1 if tensor is None else tensor.ndim


def _looked_up(given: Any, raw: Any, named: Mapping[str, Tensor], what: str) -> Any:
    if callable(given):
        return given(raw)
    source, _ = input_of(raw)
    parts = parts_of(source) or {}
    if given in named or given in parts:
        return named[given] if given in named else parts[given]
    raise InputError(
        f"{what}={given!r} is no input of this batch; known: "
        f"{', '.join(map(str, parts or named))}. Give its name, or a function of the batch: "
        f"{what}=lambda batch: …"
    )


def _owners(given: Any, named: Mapping[str, Tensor]) -> Tensor:
    """[rows] or [rows, positions]: the numbers of samples, from 0.

    Raises:
        InputError: they are none.
    """
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"samples_of gives a {type(given).__name__}; expected the number of a sample for "
            f"every row, as a tensor or a list, or a mapping of such: {error}"
        ) from error
    if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.numel() == 0:
        raise InputError(
            f"samples_of gives {ids.dtype} of shape {tuple(ids.shape)}; expected whole "
            "numbers, the number of a sample for every row."
        )
    ids = ids.long()
    if int(ids.min()) < -1 or int(ids.max()) < 0:
        raise InputError(
            f"samples_of gives numbers from {int(ids.min())} to {int(ids.max())}; expected the "
            "number of a sample for every row, 0, 1, …, and −1 for rows that do not count."
        )
    present = ids[ids >= 0].unique()
    if len(present) <= int(ids.max()) and not any(
        t.shape == ids.shape and torch.equal(t, ids) for t in named.values()
    ):  # numbers of a whole data set
        ids = torch.where(ids < 0, ids, torch.searchsorted(present, ids))
    return ids


def _tried(batch: Batch, model: nn.Module, pick: OutputPicker) -> tuple[Tensor | None, int | None]:
    """F(x), or None if there is none; and how many samples what the model returns is of."""
    try:
        with torch.no_grad():
            returned = batch.call(model)
        if isinstance(returned, (tuple, list)) and all(isinstance(r, Mapping) for r in returned):
            return None, len(returned)
        output = picked_from(returned, batch, pick)
    except Exception:
        return None, None
    is_one = isinstance(output, Tensor) and output.ndim > 0
    return (output, len(output)) if is_one else (None, None)


def _shared_by_chance(
    batch: Batch, several: list[Path], whole: Tensor, model: nn.Module, pick: OutputPicker
) -> tuple[Path, ...]:
    """The fewest parts that have to stay whole for a few samples to give what they give among all.

    None, if that is so whatever stays whole, or never: then it is for the engine to say why.
    """
    few = min(FEW, batch.samples - 1)
    most = len(several) - 1 if len(several) <= MANY else 1
    for count in range(most + 1):
        for chosen in combinations(several, count):
            part = replace(batch, shared=frozenset(chosen)).take(0, few)
            output, rows = _tried(part, model, pick)
            if output is not None and rows == few and _same(output, whole[:few]):
                return chosen
    return ()


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding."""
    if one.shape != other.shape:
        return False
    tolerance = {8: 1e-6, 4: 1e-3, 2: 1e-1}.get(one.dtype.itemsize, 1e-3)
    error = torch.linalg.vector_norm((one - other).double())
    return bool(error <= tolerance * torch.linalg.vector_norm(other.double()))
