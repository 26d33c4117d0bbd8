"""From what a model returns to the tensor F(x) whose change is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import InputError, NonFiniteError
from retain.parameters import summed_in
from retain.samples.batches import Batch

OutputPicker = Callable[[Any], Tensor]


def first_tensor(returned: Any, given: Collection[int] = ()) -> Tensor:
    """F(x) in what a model returns: a tensor itself, `.logits`, else the first floating tensor.

    Looks into tuples, lists, mappings and Hugging Face outputs, in their own order. `given` are the
    `id`s of the model's inputs, which are passed over where it returns them beside its outputs.

    Raises:
        InputError: there is no tensor in `returned`.
    """
    found = _search(returned, given)
    if found is None:
        found = _search(returned, ())
    if found is None:
        raise InputError(
            f"The model returns a {type(returned).__name__} without a tensor in it. "
            "Say what its output is with output=lambda returned: ..."
        )
    return found


def _search(returned: Any, given: Collection[int]) -> Tensor | None:
    if isinstance(returned, Tensor):
        return None if id(returned) in given else returned
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
    tensors = [t for t in (_search(item, given) for item in items) if t is not None]
    return next((t for t in tensors if t.is_floating_point()), tensors[0] if tensors else None)


def output_of(model: nn.Module, batch: Batch, pick: OutputPicker) -> Tensor:
    """F(x) [n, …] of the samples of `batch`: what `pick` finds in what the model returns.

    Where rows are no samples, each sample's rows are put together, [n, rows of a sample, …].
    Positions that a mask excludes are zero, and so is their gradient.
    """
    given = batch.spared()
    return picked_from(given.call(model), batch, pick, given)


def picked_from(returned: Any, batch: Batch, pick: OutputPicker, given: Batch) -> Tensor:
    """As `output_of`, of what the model returned for `batch`, when it was called with `given`."""
    picked = as_picked(returned, given, pick)
    if not isinstance(picked, Tensor) or picked.ndim == 0:
        return picked
    output = picked if batch.rows is None else batch.rows.arranged(picked)
    if output is not picked or not (batch.per_position or _has_positions(returned, picked)):
        return output
    dim = batch.positions if batch.positions < output.ndim else 1
    kept = batch.kept(output.shape[dim], encoder=_is_of_encoder(returned, picked))
    if kept is None or kept.all():
        return output
    # not by multiplying: what stands at a padded position may be infinite
    left_out = ~kept.view(len(kept), *[1] * (dim - 1), -1, *[1] * (output.ndim - dim - 1))
    return output.masked_fill(left_out, 0.0)


def as_picked(returned: Any, batch: Batch, pick: OutputPicker) -> Tensor:
    """What is picked, as the model returned it."""
    if pick is not first_tensor:
        return pick(returned)
    return first_tensor(returned, {id(tensor) for tensor in batch.inputs().values()})


def counted(batch: Batch, output: Tensor) -> Tensor | None:
    """[n, T] of bools: the positions of an output of `output_of` that count; None if all do."""
    if batch.rows is not None:
        rows = batch.rows.counted(output)
        if rows is not None:
            return rows
    return batch.kept(output.shape[1]) if output.ndim > 2 and batch.positions == 1 else None


def _has_positions(returned: Any, picked: Tensor) -> bool:
    """Whether dimension 1 may count positions: [n, T, …], or one number for each, by its name."""
    by_name = (getattr(returned, name, None) for name in ("start_logits", "end_logits"))
    return picked.ndim > 2 or (picked.ndim == 2 and any(picked is one for one in by_name))


def _is_of_encoder(returned: Any, picked: Tensor) -> bool:
    """Whether it is what the encoder of an encoder–decoder gave."""
    if picked is getattr(returned, "encoder_last_hidden_state", None):
        return True
    states = getattr(returned, "encoder_hidden_states", None)
    return isinstance(states, (tuple, list)) and any(picked is state for state in states)


def squared_norms(output: Tensor) -> Tensor:
    """Σₖ ‖F(xₖ)‖² over all samples, a scalar in single precision at least.

    Row by row, so that single precision is enough: one norm over everything in double precision
    takes 27 times as long (20 million numbers on a CPU). The rows are those that lie in memory:
    along any other dimension a norm may take 80 times as long (images with their channels last).
    """
    in_memory = sorted(range(output.ndim), key=output.stride, reverse=True)
    lying = output.permute(in_memory)
    rows: Tensor = torch.linalg.vector_norm(lying, dim=-1, dtype=summed_in(output.dtype))
    return rows.square().sum()


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
            f"expected {samples} in its first dimension. If its rows belong to samples in another "
            "way (patches, boxes, nodes of a graph, packed texts), say which row is whose with "
            "samples_of=...; or pick or transpose it with output=...; or say which dimension of "
            "the input counts samples with batch_dim=..."
            + (" A single sample needs a dimension in front: x[None]." if picked.ndim == 1 else "")
        )
    if not picked.requires_grad:
        raise InputError(
            "The model's output does not depend on the protected parameters: it is detached, made "
            "under no_grad(), or all of the parameters behind it are frozen or left out."
        )
    values = picked.detach()
    # one quick pass; a sum over all may overflow where no element does
    if not math.isfinite(values.sum().item()):
        finite = torch.isfinite(values.reshape(samples, -1)).all(1)
        if not finite.all():
            bad = (~finite).nonzero().flatten().tolist()
            raise NonFiniteError(f"NaN or infinity in the model's output for sample(s) {bad[:10]}.")
    return picked
