"""One batch of a user's data: how a model is called with it, and how samples are cut out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retain.errors import InputError
from retain.samples import masks
from retain.samples.containers import DESCEND, Path, leaves, parts_of, rebuilt
from retain.samples.rows import Rows

# Not inputs: a model that is given these only computes a loss with them, and no label is ever used.
LABEL_KEYS = frozenset({"labels", "label", "label_ids"})
# With these, a model may give the last positions only.
LAST_POSITIONS = frozenset({"logits_to_keep", "num_logits_to_keep", "past_key_values"})
ACCEPTED = (
    "a tensor, a tuple or list whose first element is the input, a dict or dataclass of keyword "
    "arguments, or an object that the model takes whole"
)


@dataclass(frozen=True)
class Batch:
    """A batch as the model takes it.

    Attributes:
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        samples: how many samples it holds.
        labels: what stood beside the input, if anything; only the empirical Fisher looks at it.
        batch_dim: the dimension of the input tensors that counts samples.
        names: of the positional arguments, as far as they are known.
        shared: parts that all samples have in common, whatever their size.
        lists: lists with one item per sample.
        rows: which sample each row belongs to, where rows are no samples.
        padding: [n, T] of bools: positions that do not count, where the user says so.
        per_position: an output [n, T] has one number for each position.
        positions: the dimension of an output [n, …] that counts positions.
        overwritten: the model writes to its inputs, so that each call needs copies.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int
    labels: Tensor | None = None
    batch_dim: int = 0
    names: tuple[str, ...] = ()
    shared: frozenset[Path] = field(default_factory=frozenset)
    lists: frozenset[Path] = field(default_factory=frozenset)
    rows: Rows | None = None
    padding: Tensor | None = None
    per_position: bool = False
    positions: int = 1
    overwritten: bool = False

    @classmethod
    def of(cls, raw: object, *, batch_dim: int = 0) -> Batch:
        """The batch in `raw`, which is a tensor, a tuple or list (input first), or has named parts.

        Raises:
            InputError: `raw` is none of these, or holds no tensor with a batch dimension.
        """
        given, labels = input_of(raw)
        args: tuple[Any, ...]
        kwargs: dict[str, Any]
        if isinstance(given, Tensor):
            args, kwargs = (given,), {}
        elif isinstance(given, (tuple, list)) and any(isinstance(item, Tensor) for item in given):
            args, kwargs = tuple(given), {}
        elif (parts := parts_of(given)) is not None:
            args, kwargs = (), {k: v for k, v in parts.items() if k not in LABEL_KEYS}
            if labels is None:
                beside = (item for key, item in parts.items() if key in LABEL_KEYS)
                labels = next((item for item in beside if isinstance(item, Tensor)), None)
        else:
            raise InputError(
                f"A batch is a {type(raw).__name__}"
                + (f" that begins with a {type(given).__name__}" if given is not raw else "")
                + f"; expected {ACCEPTED}."
            )
        return replace(cls.of_call(args, kwargs, batch_dim=batch_dim), labels=labels)

    @classmethod
    def of_call(cls, args: tuple[Any, ...], kwargs: dict[str, Any], *, batch_dim: int = 0) -> Batch:
        """The batch that a model is called with by `model(*args, **kwargs)`.

        Raises:
            InputError: there is nothing that counts samples, or no sample.
        """
        return cls(args, kwargs, 0, None, batch_dim).counted()

    def counted(self) -> Batch:
        """The same batch, with as many samples as the first part says that counts any.

        Raises:
            InputError: there is nothing that counts samples, or no sample.
        """
        if not self._counts:
            raise InputError(
                f"A batch holds no tensor with a dimension {self.batch_dim} to count samples by; "
                f"expected {ACCEPTED}."
            )
        return self.counted_by(next(iter(self._counts)))

    def counted_by(self, path: Path) -> Batch:
        """The same batch, with as many samples as the part at `path` holds.

        Raises:
            InputError: no sample.
        """
        counts, tensors = self._counts, self._inputs
        samples = counts[path]
        if samples == 0:
            raise InputError("A batch holds 0 samples. Leave empty batches out of the data.")
        inside = {where[:-1] for where in counts if where in tensors}
        lists = (
            where
            for where, count in counts.items()
            if where not in tensors and count == samples and (where not in inside or where == path)
        )
        return self.described(samples=samples, lists=frozenset(lists))

    def described(self, **more: Any) -> Batch:
        """The same parts, of which more is said: what was looked up about them stays known."""
        other = replace(self, **more)
        for looked_up in ("_inputs", "_counts"):
            if looked_up in vars(self):
                vars(other)[looked_up] = vars(self)[looked_up]
        return other

    def call(self, model: nn.Module) -> Any:
        """What the model returns for this batch; it may add to a mapping without changing it."""
        args = (copy(arg) if isinstance(arg, MutableMapping) else arg for arg in self.args)
        return model(*args, **self.kwargs)

    def call_without_graph(self, model: nn.Module) -> Any:
        """As `call`, without gradients, unless the model cannot be called so.

        It may put hooks on its tensors, or ask for gradients itself.
        """
        try:
            with torch.no_grad():
                return self.call(model)
        except Exception:
            with torch.enable_grad():
                return self.call(model)

    def copied(self) -> Batch:
        """The same batch, with copies of its tensors and of what they are in."""

        def copy_of(_path: Path, part: Any) -> Any:
            return part.clone() if isinstance(part, Tensor) else DESCEND

        return self._changed(rebuilt(self._parts(), copy_of))

    def spared(self) -> Batch:
        """What the model may be called with: copies, if it writes to its inputs."""
        return self.copied() if self.overwritten else self

    def is_written_to(self, before: Mapping[Path, tuple[Tensor, int]]) -> bool:
        """Whether any of its tensors was, or is no longer there, since `marks` gave `before`."""
        now = dict(leaves(self._parts()))
        return any(t is not now.get(path) or t._version != v for path, (t, v) in before.items())

    def marks(self) -> dict[Path, tuple[Tensor, int]]:
        """Its tensors, and how often they were written to."""
        return {path: (t, t._version) for path, t in self._inputs.items()}

    # ---- its parts ----

    def inputs(self) -> dict[Path, Tensor]:
        """Every tensor that the model is given, by the way to it: names, and places in lists."""
        return self._inputs.copy()

    @cached_property
    def _inputs(self) -> dict[Path, Tensor]:
        return dict(leaves(self._parts()))

    def part(self, path: Path) -> Any:
        """What lies at the end of this way."""
        found: Any = self._parts()
        for key in path:
            found = (
                vars(found)[key]
                if hasattr(found, "__dict__") and key in vars(found)
                else found[key]
            )
        return found

    def counts(self) -> dict[Path, int]:
        """Whatever may count samples, and how many there are of each.

        Tensors, by their size along the batch dimension; then lists, by their lengths. The tensors
        in a list count if they are all of one size, as those of several kinds of features.
        """
        return self._counts.copy()

    @cached_property
    def _counts(self) -> dict[Path, int]:
        tensors: dict[Path, int] = {}
        lists: dict[Path, int] = {}

        def see(path: Path, part: Any) -> Any:
            if isinstance(part, Tensor):
                if part.ndim > self._dim(path):
                    tensors[path] = part.shape[self._dim(path)]
                return part
            if path and _is_list(part):
                lists[path] = len(part)
                sizes = {_size(item, self.batch_dim) for item in part}
                return DESCEND if len(sizes) == 1 and None not in sizes else part
            return DESCEND

        rebuilt(self._parts(), see)
        return tensors | lists

    def lists_of(self, samples: int) -> list[Path]:
        """Lists with one item for each of so many samples, and no tensor of rows in them."""
        tensors = self.inputs()
        inside = {path[:-1] for path in tensors}
        return [
            path
            for path, count in self.counts().items()
            if count == samples and path not in tensors and path not in inside
        ]

    def parts_that_count(self) -> list[Path]:
        """The parts that are cut because they hold as many samples as the batch."""
        tensors = self.inputs()
        return [
            path
            for path, count in self.counts().items()
            if count == self.samples
            and path not in self.shared
            and (path in self.lists or path in tensors)
            and path[:-1] not in self.lists
        ]

    def _parts(self) -> dict[Any, Any]:
        """What is given by position and by name, by name where it is known."""
        return {**{self._name(at): v for at, v in enumerate(self.args)}, **self.kwargs}

    def _name(self, at: int) -> str | int:
        return self.names[at] if at < len(self.names) else at

    def _dim(self, path: Path) -> int:
        return 0 if path[-1] in masks.OF_SAMPLES else self.batch_dim

    def _changed(self, parts: dict[Any, Any], **more: Any) -> Batch:
        args = tuple(parts[self._name(at)] for at in range(len(self.args)))
        return replace(self, args=args, kwargs={key: parts[key] for key in self.kwargs}, **more)

    # ---- cutting and moving ----

    def take(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop` (not included), every batch dimension kept."""
        stop = min(stop, self.samples)

        def cut(path: Path, part: Any) -> Any:
            if path in self.shared:
                return part
            if isinstance(part, Tensor):
                return _as_leaf(part, self._cut(path, part, start, stop))
            if path in self.lists and len(part) == self.samples:
                return part[start:stop]
            return DESCEND

        labels = self.labels
        if labels is not None and labels.ndim:
            there = None if self.rows is None else self.rows.cut(("labels",), labels, start, stop)
            if there is None and labels.shape[0] == self.samples:
                there = labels[start:stop]
            labels = labels if there is None else there
        return self._changed(
            rebuilt(self._parts(), cut),
            labels=labels,
            samples=stop - start,
            rows=None if self.rows is None else self.rows.take(start, stop),
            padding=None if self.padding is None else self.padding[start:stop],
        )

    def doubled(self) -> Batch | None:
        """The samples, and the same again after them; None where rows are no samples."""
        if self.rows is not None:
            return None

        def again(path: Path, part: Any) -> Any:
            if path in self.shared:
                return part
            if isinstance(part, Tensor):
                dim = self._dim(path)
                held = part.ndim > dim and part.shape[dim] == self.samples
                return _as_leaf(part, torch.cat([part, part], dim)) if held else part
            if path in self.lists and len(part) == self.samples:
                return part + part
            return DESCEND

        labels, padding = self.labels, self.padding
        if labels is not None and labels.shape[:1] == (self.samples,):
            labels = torch.cat([labels, labels])
        return self._changed(
            rebuilt(self._parts(), again),
            labels=labels,
            samples=2 * self.samples,
            padding=None if padding is None else torch.cat([padding, padding]),
        )

    def _cut(self, path: Path, tensor: Tensor, start: int, stop: int) -> Tensor:
        rows = None if self.rows is None else self.rows.cut(path, tensor, start, stop)
        if rows is not None:
            return rows
        dim = self._dim(path)
        if tensor.ndim > dim and tensor.shape[dim] == self.samples:
            return _narrowed(tensor, dim, start, stop - start)
        return tensor

    def shortened(self, positions: int) -> Batch:
        """The same samples without the last of so many positions."""

        def cut(path: Path, part: Any) -> Any:
            if path in self.shared or not isinstance(part, Tensor):
                return part if path in self.shared else DESCEND
            for dim in range(1, part.ndim):
                if part.shape[dim] == positions and (dim == 1 or part.shape[-1] == positions):
                    part = _narrowed(part, dim, 0, positions - 1)
            return part

        padding = None if self.padding is None else self.padding[:, : positions - 1]
        return self._changed(rebuilt(self._parts(), cut), padding=padding)

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on `device`, and none that autograd could not use."""
        tensors = [t for t in (*self._inputs.values(), self.labels, self.padding) if t is not None]
        if self.rows is None and all(t.device == device and not t.is_inference() for t in tensors):
            return self

        def moved(_path: Path, part: Any) -> Any:
            if not isinstance(part, Tensor):
                return DESCEND
            there = part.to(device, non_blocking=True)
            return there.clone() if there.is_inference() else there

        return self._changed(
            rebuilt(self._parts(), moved),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=True),
            rows=None if self.rows is None else self.rows.to(device),
            padding=None if self.padding is None else self.padding.to(device),
        )

    def cut_off(self, leads_here: Callable[[Tensor], bool]) -> Batch:
        """The same batch, where no input has a past in autograd that does not lead here.

        A network before the model may have made it; what is differentiated ends at the input.
        """

        def leaf(_path: Path, part: Any) -> Any:
            if not isinstance(part, Tensor):
                return DESCEND
            if part.grad_fn is None or leads_here(part):
                return part
            return part.detach().requires_grad_()

        if all(part.grad_fn is None for part in self._inputs.values()):
            return self
        return self._changed(rebuilt(self._parts(), leaf))

    # ---- its positions ----

    def kept(self, positions: int, *, encoder: bool = False) -> Tensor | None:
        """[n, positions] of bools: those of an output that are no padding; None if no mask says.

        Args:
            positions: how many the output has.
            encoder: the output is what an encoder gives, though there is a decoder.
        """
        last_only = bool(self.kwargs.keys() & LAST_POSITIONS)
        every = [~self.padding] if self.padding is not None else self._masks(encoder)
        for mask in every:
            if mask.shape == (self.samples, positions):
                return mask
            if last_only and mask.shape[0] == self.samples and mask.shape[1] > positions:
                return mask[:, -positions:]
        return None

    def masks(self) -> list[Tensor]:
        """[n, T] of bools for every mask that there is, of any sequence: True where it counts."""
        if self.padding is not None:
            return [~self.padding]
        return [mask for encoder in (True, False) for mask in self._masks(encoder)]

    @property
    def follows_unmasked_decoder(self) -> bool:
        """Whether outputs follow what a decoder reads, and no mask is of that."""
        named = self._named(frozenset())
        return self.padding is None and masks.has_decoder(named) and not masks.of_decoder(named)

    def _masks(self, encoder: bool) -> list[Tensor]:
        named = self._named(self.shared)
        if masks.has_decoder(named) and not encoder:
            return masks.of_decoder(named)
        return masks.of_encoder(named)

    def named(self) -> dict[str, Tensor]:
        """Every tensor that the model is given, by its name alone."""
        return {str(path[-1]): tensor for path, tensor in self._inputs.items()}

    def _named(self, without: frozenset[Path]) -> dict[str, Tensor]:
        """Inputs by their names; labels only where a decoder reads them."""
        named = {str(path[-1]): t for path, t in self._inputs.items() if path not in without}
        return (
            named if "labels" in self.kwargs else {k: t for k, t in named.items() if k != "labels"}
        )


def input_of(raw: object) -> tuple[Any, Tensor | None]:
    """The input in a batch, and the first tensor beside it, which may be its labels.

    Raises:
        InputError: there is nothing in it, or samples that cannot be taken apart.
    """
    if isinstance(raw, PackedSequence):
        raise InputError(
            "A batch is a PackedSequence, whose samples cannot be taken apart; expected padded "
            "sequences: torch.nn.utils.rnn.pad_packed_sequence(batch)."
        )
    if isinstance(raw, (tuple, list)):
        if not raw:
            raise InputError(f"A batch is an empty {type(raw).__name__}; expected {ACCEPTED}.")
        return raw[0], next((item for item in raw[1:] if isinstance(item, Tensor)), None)
    return raw, None


def tensors_in(value: object) -> list[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclasses, in their order."""
    return [tensor for _, tensor in leaves(value)]


def _is_list(part: Any) -> bool:
    plain = isinstance(part, (tuple, list)) and not hasattr(part, "_fields")
    return plain and not isinstance(part, PackedSequence) and len(part) > 0


def _size(item: Any, dim: int) -> int | None:
    """The size of a tensor along `dim`; nested containers have none."""
    return item.shape[dim] if isinstance(item, Tensor) and item.ndim > dim else None


def _narrowed(tensor: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Part of a tensor, without gaps in memory if it had none: models may ask for a view of it.

    Raises:
        InputError: it is kept in a layout of which no part can be had (sparse).
    """
    if tensor.layout is not torch.strided:
        raise InputError(
            f"A batch holds a tensor in the layout {tensor.layout}, whose samples cannot be taken "
            "apart; expected a dense one: tensor.to_dense()."
        )
    part = tensor.narrow(dim, start, length)
    return part.contiguous() if dim and tensor.is_contiguous() else part


def _as_leaf(whole: Tensor, cut: Tensor) -> Tensor:
    """What was cut out of an input: a leaf like it, so that it makes the same graph."""
    if cut is whole or not (whole.requires_grad and whole.is_leaf):
        return cut
    return cut if isinstance(whole, nn.Parameter) else cut.detach().requires_grad_()
