"""One batch of a user's data: how a model is called with it, and how samples are cut out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retain.errors import InputError

# Not inputs: a model that is given these only computes a loss with them, and no label is ever used.
LABEL_KEYS = frozenset({"labels", "label", "label_ids"})
ACCEPTED = (
    "a tensor, a tuple or list whose first element is the input, or a dict of keyword arguments"
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
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int
    labels: Tensor | None = None
    batch_dim: int = 0

    @classmethod
    def of(cls, raw: object, *, batch_dim: int = 0) -> Batch:
        """The batch in `raw`, which is a tensor, a tuple or list (input first), or a mapping.

        Raises:
            InputError: `raw` is none of these, or holds no tensor with a batch dimension.
        """
        given, labels = raw, None
        if isinstance(given, PackedSequence):
            raise InputError(
                "A batch is a PackedSequence, whose samples cannot be taken apart; expected padded "
                "sequences: torch.nn.utils.rnn.pad_packed_sequence(batch)."
            )
        if isinstance(given, (tuple, list)):
            if not given:
                raise InputError(f"A batch is an empty {type(raw).__name__}; expected {ACCEPTED}.")
            labels = next((item for item in given[1:] if isinstance(item, Tensor)), None)
            given = given[0]
        args: tuple[Any, ...]
        kwargs: dict[str, Any]
        if isinstance(given, Tensor):
            args, kwargs = (given,), {}
        elif isinstance(given, Mapping):
            args, kwargs = (), {k: v for k, v in given.items() if k not in LABEL_KEYS}
            if labels is None:
                beside = (item for key, item in given.items() if key in LABEL_KEYS)
                labels = next((item for item in beside if isinstance(item, Tensor)), None)
        elif isinstance(given, (tuple, list)) and any(isinstance(item, Tensor) for item in given):
            args, kwargs = tuple(given), {}
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
            InputError: there is no tensor with a batch dimension, or no sample.
        """
        counts = [t.shape[batch_dim] for t in tensors_in((args, kwargs)) if t.ndim > batch_dim]
        if not counts:
            raise InputError(
                f"A batch holds no tensor with a dimension {batch_dim} to count samples by; "
                f"expected {ACCEPTED}."
            )
        if counts[0] == 0:
            raise InputError("A batch holds 0 samples. Leave empty batches out of the data.")
        return cls(args, kwargs, counts[0], None, batch_dim)

    def call(self, model: nn.Module) -> Any:
        """What the model returns for this batch."""
        return model(*self.args, **self.kwargs)

    def take(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop` (not included), every batch dimension kept."""
        stop = min(stop, self.samples)

        def cut(tensor: Tensor) -> Tensor:
            dim = self.batch_dim
            if tensor.ndim > dim and tensor.shape[dim] == self.samples:
                return tensor.narrow(dim, start, stop - start)
            return tensor

        labels = self.labels
        if labels is not None and labels.ndim and labels.shape[0] == self.samples:
            labels = labels[start:stop]
        args, kwargs = _map((self.args, self.kwargs), cut)
        return replace(self, args=args, kwargs=kwargs, labels=labels, samples=stop - start)

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on `device`, and none that autograd could not use."""

        def moved(tensor: Tensor) -> Tensor:
            there = tensor.to(device, non_blocking=True)
            return there.clone() if there.is_inference() else there

        args, kwargs = _map((self.args, self.kwargs), moved)
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(self, args=args, kwargs=kwargs, labels=labels)


def tensors_in(value: object) -> list[Tensor]:
    """Every tensor in nested tuples, lists and mappings, in their order."""
    found: list[Tensor] = []

    def see(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map(value, see)
    return found


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map(item, change) for item in value)
    return value
