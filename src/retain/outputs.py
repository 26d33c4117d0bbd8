"""From what a model returns to the tensor F(x) whose change is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retain.batches import Batch
from retain.errors import InputError, NonFiniteError

OutputPicker = Callable[[Any], Tensor]


def first_tensor(returned: Any) -> Tensor:
    """F(x) in what a model returns: a tensor itself, `.logits`, else the first floating tensor.

    Looks into tuples, lists, mappings and Hugging Face outputs, in their own order.

    Raises:
        InputError: there is no tensor in `returned`.
    """
    found = _search(returned)
    if found is None:
        raise InputError(
            f"The model returns a {type(returned).__name__} without a tensor in it. "
            "Say what its output is with output=lambda returned: ..."
        )
    return found


def _search(returned: Any) -> Tensor | None:
    if isinstance(returned, Tensor):
        return returned
    mapping = isinstance(returned, Mapping)
    logits = getattr(returned, "logits", returned.get("logits") if mapping else None)
    if isinstance(logits, Tensor):
        return logits
    if mapping:
        items = list(returned.values())
    elif isinstance(returned, (tuple, list)):
        items = list(returned)
    else:
        return None
    tensors = [tensor for tensor in map(_search, items) if tensor is not None]
    return next((t for t in tensors if t.is_floating_point()), tensors[0] if tensors else None)


def output_of(model: nn.Module, batch: Batch, pick: OutputPicker) -> Tensor:
    """F(x) [n, …] of the samples of `batch`: what `pick` finds in what the model returns."""
    return pick(batch.call(model))


def checked(picked: Any, samples: int) -> Tensor:
    """`picked`, if it is an F(x) that can be differentiated for each of the `samples`.

    Raises:
        InputError: not a floating tensor, not one row per sample, or cut off from the parameters.
        NonFiniteError: NaN or infinity in it.
    """
    if not isinstance(picked, Tensor) or not picked.is_floating_point():
        kind = picked.dtype if isinstance(picked, Tensor) else type(picked).__name__
        raise InputError(
            f"The model's output is a {kind}; expected a floating point tensor. "
            "Pick one with output=lambda returned: ..."
        )
    if picked.ndim == 0 or picked.shape[0] != samples:
        raise InputError(
            f"The model's output has shape {tuple(picked.shape)} for a batch of {samples} samples; "
            f"expected {samples} in its first dimension. Pick or transpose it with output=..., or "
            "say which dimension of the input counts samples with batch_dim=..."
        )
    if not picked.requires_grad:
        raise InputError(
            "The model's output does not depend on the protected parameters: it is detached, made "
            "under no_grad(), or all of the parameters behind it are frozen or left out."
        )
    finite = torch.isfinite(picked.detach().reshape(samples, -1)).all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise NonFiniteError(f"NaN or infinity in the model's output for sample(s) {bad[:10]}.")
    return picked
