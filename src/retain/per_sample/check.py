"""The self-check: a few samples, together and one by one, must give the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from retain.batches import Batch
from retain.errors import ModelError
from retain.outputs import OutputPicker, output_of
from retain.per_sample.sums import CACHED

# Relative ℓ2 errors that rounding explains, by the size of the floating point type; generous,
# since a model may compute in less precision inside. A wrong rule is wrong by far more.
TOLERANCE = {8: 1e-6, 4: 1e-3, 2: 1e-1}
# A gradient that is zero in exact arithmetic is noise, of this share of the largest at most.
FLOOR = {8: 1e-12, 4: 1e-6, 2: 1e-2}


def same(one: Tensor, other: Tensor, floor: float = 0.0) -> bool:
    """Whether two tensors agree to rounding. NaN never does."""
    return _distance(one, other) <= max(TOLERANCE[_bytes(one, other)] * float(other.norm()), floor)


def _distance(one: Tensor, other: Tensor) -> float:
    """‖one − other‖₂, without a temporary as large as they are."""
    pieces = zip(one.reshape(-1).split(CACHED), other.reshape(-1).split(CACHED))
    norms = [float((a.to(b.dtype) - b).norm()) for a, b in pieces]
    return math.hypot(*norms)


def disagreeing(
    sums: Mapping[str, Tensor], truth: Mapping[str, Tensor], power: int = 1
) -> list[str]:
    """The parameters whose sums differ from the single-sample loop's."""
    largest = max((float(value.norm()) for value in truth.values()), default=0.0)
    return [
        name
        for name, value in truth.items()
        if not same(sums[name], value, floor=largest * FLOOR[_bytes(sums[name], value)] ** power)
    ]


def _bytes(*tensors: Tensor) -> int:
    return min(tensor.dtype.itemsize for tensor in tensors)


def refuse_interaction(
    model: nn.Module,
    batch: Batch,
    output: OutputPicker,
    together: Tensor,
    singly: list[Tensor] | None,
) -> None:
    """Raise if the samples of `batch` do not give the same outputs alone as `together`.

    `singly` has the output of each sample alone; None if the model cannot take one sample.

    Raises:
        ModelError: naming the first module, in order of execution, whose output depends on the
            other samples, or that gives something else each time.
    """
    if singly is not None and all(
        o.shape[1:] == together.shape[1:] and len(o) == 1 for o in singly
    ):
        if same(torch.cat(singly), together.detach()):
            return
        with torch.no_grad():
            again = output_of(model, batch, output)
        if not same(again, together.detach()):
            _raise(model, batch, [batch, batch], "gives another output each time it is called")
    _raise(
        model,
        batch,
        [batch.take(k, k + 1) for k in range(batch.samples)],
        "mixes the samples of a batch: its output for one sample depends on the others",
    )


def refuse_size(model: nn.Module, batch: Batch, part: Batch) -> NoReturn:
    """Raise for a model that took a batch but cannot take a part of it.

    Raises:
        ModelError: naming the module that failed.
    """
    _raise(model, batch, [part], f"fails with {part.samples} of the {batch.samples} samples")


def _raise(model: nn.Module, batch: Batch, others: list[Batch], what: str) -> NoReturn:
    culprit = _first_difference(model, batch, others)
    if culprit is None:
        who = "The model (outside of its modules, or by the dimension that counts samples)"
        remedy = "Look at its forward(), or say batch_dim=... if samples are not counted first."
    else:
        module = model.get_submodule(culprit) if culprit else model
        mode = ", in train mode although the model is in eval mode" if module.training else ""
        who = f"Module '{culprit or type(model).__name__}' ({type(module).__name__}{mode})"
        remedy = "Importance is defined per sample; put the module in eval mode or replace it."
    raise ModelError(f"{who} {what}. {remedy}")


def _first_difference(model: nn.Module, batch: Batch, others: list[Batch]) -> str | None:
    """The innermost module that first differs between one call and several, if one does."""
    reference, _ = _outputs_of_modules(model, batch)
    compared = []
    for other in others:
        outputs, failed = _outputs_of_modules(model, other)
        if failed:
            return failed
        compared.append(outputs)
    for name, together in reference.items():
        if not name:
            continue
        parts = [outputs[name] for outputs in compared if name in outputs]
        if len(parts) != len(compared):
            continue
        whole = parts if others[0].samples == batch.samples else [_joined(parts, together)]
        if any(w is None or not same(w, together) for w in whole):
            return name
    return None


def _joined(parts: list[Tensor], together: Tensor) -> Tensor | None:
    """Single-sample outputs side by side, along the dimension that makes their shapes fit."""
    for dim in range(together.ndim):
        if (
            sum(p.shape[dim] if p.ndim == together.ndim else 0 for p in parts)
            == together.shape[dim]
        ):
            others = [[s for d, s in enumerate(p.shape) if d != dim] for p in [*parts, together]]
            if all(o == others[0] for o in others):
                return torch.cat(parts, dim)
    return None


def _outputs_of_modules(model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], str | None]:
    """The first output of every module that returned a tensor, innermost first.

    If the model cannot take the batch, also the innermost module that failed.
    """
    outputs: dict[str, Tensor] = {}
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda _module, _inputs: running.append(name)

    def leave(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, returned: Any) -> None:
            running.pop()
            if isinstance(returned, Tensor) and returned.is_floating_point():
                outputs.setdefault(name, returned.detach().clone())

        return hook

    hooks = [m.register_forward_pre_hook(enter(name)) for name, m in model.named_modules()]
    hooks += [m.register_forward_hook(leave(name)) for name, m in model.named_modules()]
    try:
        with torch.no_grad():
            batch.call(model)
    except (RuntimeError, ValueError, IndexError):
        return outputs, running[-1] if running else None
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, None
