"""Where weights are about to go: those of another model, or of one step on new data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.borrowed import borrowed
from retain.errors import InputError
from retain.memory.given_data import batches_in, blaming
from retain.parameters import (
    Weights,
    canonical,
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

EXPECTED = "a model, a state dict, or a loader of new data"
Loss = Callable[[nn.Module, Any], Tensor]


def weights_in(other: object, held: Weights) -> Weights | None:
    """Name -> weight of a model or a state dict, for everything in `held`; None if it is neither.

    Adapters of PEFT count as merged.

    Raises:
        InputError: names that are missing or have another shape, all of them.
    """
    if isinstance(other, nn.Module):
        found: Weights = named_parameters(merged_copy(other) if has_adapters(other) else other)
    elif isinstance(other, Mapping):
        refuse_unmerged(map(str, other), "The state dict")
        found = {canonical(str(name)): w for name, w in other.items() if isinstance(w, Tensor)}
    else:
        return None
    wrong = [
        f"{name} {tuple(star.shape)} is "
        + (f"{shape_there(found[name])} there" if name in found else "missing")
        for name, star in held.items()
        if name not in found or shape_of(found[name]) != star.shape
    ]
    if wrong:
        raise InputError(
            f"These weights are of another model: {'; '.join(wrong)}. Give a model or a state dict "
            "with the parameters that this memory holds."
        )
    bad = unusable(found, held)
    if bad:
        raise InputError(
            f"No forecast can be made of these weights: {'; '.join(bad)}. Expected finite numbers."
        )
    return found


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
    return F.cross_entropy(first_tensor(returned), batch.labels)
