"""The slow truth: Σₖ |∂sₖ/∂θ|ᵖ, one sample at a time, by ordinary autograd."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from retain.batches import Batch
from retain.outputs import OutputPicker, output_of
from retain.per_sample.scores import Score
from retain.per_sample.sums import CACHED


def sums_by_loop(
    model: nn.Module,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    score: Score,
    *,
    power: int = 1,
    output: OutputPicker,
    target: Tensor | None = None,
    outputs: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Σₖ |∂sₖ/∂θ|ᵖ for every parameter, shaped like it, by one forward and backward per sample.

    With several scores per sample the powers are summed over them as well. A parameter that a
    sample does not use gets 0 from it. `target` belongs to the whole batch and is cut along.
    `outputs` is filled with F(x) of each sample.
    """
    sums: dict[str, Tensor] = {}
    leaves = list(parameters.values())
    for k in range(batch.samples):
        with torch.enable_grad():
            out = output_of(model, batch.take(k, k + 1), output)
            one = None if target is None else target[k : k + 1]
            scores = score(out, one).reshape(-1)
        if outputs is not None:
            outputs.append(out.detach())
        for index, s in enumerate(scores):
            last = index == len(scores) - 1
            gradients = (
                torch.autograd.grad(s, leaves, retain_graph=not last, allow_unused=True)
                if leaves
                else ()
            )
            _add_powers(sums, parameters, gradients, power)
            del gradients  # those of the next sample would stand beside them
    unused = parameters.keys() - sums.keys()
    sums |= {name: torch.zeros_like(parameters[name], requires_grad=False) for name in unused}
    return {name: sums[name] for name in parameters}


def _add_powers(
    sums: dict[str, Tensor], names: Iterable[str], gradients: Iterable[Tensor | None], power: int
) -> None:
    for name, g in zip(names, gradients):
        if g is not None:
            _add_power(sums, name, g.to_dense() if g.is_sparse else g, power)


def _add_power(sums: dict[str, Tensor], name: str, gradient: Tensor, power: int) -> None:
    """Σ |gₖ|ᵖ (MAS, eq. 2, for p = 1; the diagonal Fisher for p = 2), with no P-sized temporary."""
    raised = torch.abs if power == 1 else torch.square
    if name not in sums:
        sums[name] = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        raised(gradient, out=sums[name])
        return
    pieces = zip(sums[name].view(-1).split(CACHED), gradient.reshape(-1).split(CACHED))
    for total, piece in pieces:
        total.add_(raised(piece))
