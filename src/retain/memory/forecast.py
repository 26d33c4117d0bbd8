"""Where weights are about to go: those of another model, or of one step on new data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.borrowed import borrowed
from retain.counterparts import (
    REMEDY,
    beside,
    few,
    in_a_checkpoint,
    lookalike,
    plain_names,
)
from retain.errors import InputError
from retain.memory.given_data import batches_in, blaming
from retain.memory.movement import unrelated
from retain.parameters import (
    Weights,
    has_adapters,
    merged_copy,
    named_parameters,
    refuse_unmerged,
    shape_of,
    shape_there,
    unusable,
)
from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor
from retain.saying import warn

EXPECTED = "a model, a state dict, or a loader of new data"
Loss = Callable[[nn.Module, Any], Tensor]


def weights_in(other: object, held: Weights, known: Collection[str] = ()) -> Weights | None:
    """Name -> weight of a model or a state dict, for everything in `held`; None if it is neither.

    Adapters of PEFT count as merged. Names may have what wrappers put before them.

    Args:
        other: what may be either.
        held: the weights that are looked for.
        known: names of all that the memory's own model has. Of what is new in the modules that
            hold weights it is warned, since it counts for nothing.

    Raises:
        InputError: names that are missing or have another shape, all of them.
    """
    if isinstance(other, nn.Module):
        found: Weights = named_parameters(merged_copy(other) if has_adapters(other) else other)
    elif isinstance(other, Mapping):
        refuse_unmerged(map(str, other), "The state dict")
        tensors = {str(name): w for name, w in other.items() if isinstance(w, Tensor)}
        found = {plain: tensors[name] for plain, name in plain_names(tensors, held).items()}
    else:
        return None
    hints = {n: lookalike(n, star.shape, found) for n, star in held.items() if n not in found}
    wrong = [
        f"{name} {tuple(star.shape)} is "
        + (f"missing{hints[name]}" if name in hints else f"{shape_there(found[name])} there")
        for name, star in held.items()
        if name in hints or shape_of(found[name]) != star.shape
    ]
    if wrong:
        key = in_a_checkpoint(other) if isinstance(other, Mapping) else ""
        odd = {type(w).__name__ for w in other.values()} if isinstance(other, Mapping) else set()
        odd = odd - {"Tensor", "Parameter"} if not found and not key else set()
        raise InputError(
            f"These weights are of another model: {'; '.join(wrong)}. Give a model or a state dict "
            "with the parameters that this memory holds."
            + (f" What was given is a checkpoint: give its [{key!r}]." if key else "")
            + (f" What was given holds {', '.join(sorted(odd))}, no tensors." if odd else "")
            + (REMEDY if any(hints.values()) else "")
        )
    if known and (new := beside(found, known, held)):
        warn(
            f"{few(new)}: new beside weights that the memory holds, and what they do to the output "
            "is not in the forecast. If they are adapters, merge them into the weights first."
        )
    return found


def refuse_unusable(found: Weights, held: Iterable[str]) -> None:
    """Of weights that are no finite numbers nothing can be forecast.

    Raises:
        InputError: some are not, with their names.
    """
    bad = unusable(found, held)
    if bad:
        raise InputError(
            f"No forecast can be made of these weights: {'; '.join(bad)}. Expected finite numbers."
        )


def warn_if_unrelated(found: Weights, anchor: Weights) -> None:
    """Weights that have nothing in common with θ* are another model's, of the same shapes."""
    matrices = [(found[n], star) for n, star in anchor.items() if n in found and star.ndim > 1]
    if matrices and unrelated(matrices):
        warn(
            "The weights have nothing in common with those that the memory holds (they are at a "
            "right angle to θ*): they are another model's, of the same shapes, or were made anew. "
            "What the forecast says of a model that was trained from θ* it does not say of them."
        )


def after_one_step(
    model: nn.Module, data: Any, held: Weights, *, loss: Loss | None, lr: float
) -> Weights:
    """Name -> weight after one plain step of gradient descent on all of `data`.

    Raises:
        InputError: no batch, no labels where the loss needs them, or a loss that is no scalar.
    """
    parameters = {n: p for n, p in named_parameters(model).items() if n in held and p.requires_grad}
    if not parameters:
        raise InputError("None of the weights that this memory holds is trainable.")
    device = next(iter(parameters.values())).device
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = 0
    with borrowed(model), torch.enable_grad():
        for number, raw in enumerate(batches_in(data, batch_dim=0, expected=EXPECTED), 1):
            with blaming(number, None, model, raw):
                batch = Batch.of(raw).to(device)
                value = (_cross_entropy if loss is None else loss)(
                    model, batch if loss is None else raw
                )
                if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                    raise InputError("The loss is not a scalar with a gradient.")
                gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for name, g in zip(parameters, gradients):
                if g is not None:
                    total[name].add_(g, alpha=batch.samples)
            samples += batch.samples
    if not samples:
        raise InputError("The data holds no batch.")
    now = named_parameters(model)
    # θ − η · 1/N Σ ∂L/∂θ
    moved = {name: p.detach() - total[name] * (lr / samples) for name, p in parameters.items()}
    bad = unusable(moved, moved)
    if bad:
        raise InputError(
            f"One step on this data gives no finite weights: {'; '.join(bad)}. The loss or its "
            "gradient is NaN or infinite, or lr is too large."
        )
    return {name: moved.get(name, now[name].detach()) for name in held}


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    returned = batch.copied().call(model)  # it may write to its inputs
    own = getattr(returned, "loss", None)
    if isinstance(own, Tensor):
        return own
    if batch.labels is None:
        raise InputError(
            "The batch holds no labels for a cross-entropy. Give (inputs, labels), or say what is "
            "learned with loss=lambda model, batch: …"
        )
    outputs = first_tensor(returned)
    if batch.labels.is_floating_point() and batch.labels.shape != outputs.shape:
        raise InputError(
            f"The labels are {str(batch.labels.dtype).removeprefix('torch.')} of shape "
            f"{tuple(batch.labels.shape)}, and no classes for a cross-entropy with outputs of "
            f"{tuple(outputs.shape)}. Say what is learned with loss=lambda model, batch: …"
        )
    return F.cross_entropy(outputs, batch.labels)
