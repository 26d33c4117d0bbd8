"""Calls of linear and convolutional layers, recognised as they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from retain.per_sample.rules.convolution import Settings

LINEAR = ("input", "weight", "bias")
ADDMM = ("bias", "input", "weight")
CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = (*CONVOLUTION[:5], "output_padding", "groups", "dilation")
CONVOLUTIONS = {getattr(torch, f"conv{d}d"): d for d in (1, 2, 3)}
TRANSPOSED_CONVOLUTIONS = {getattr(torch, f"conv_transpose{d}d"): d for d in (1, 2, 3)}
LAYERS = frozenset({F.linear, torch.addmm, *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS})


@dataclass(frozen=True)
class LayerCall:
    """z = W y + b, as a function of torch was asked for it.

    Attributes:
        inputs: y, what the layer reads; features in its last dimension, or, of a convolution,
            samples in dimension 0 and channels in dimension 1.
        weight: W.
        bias: b, if any.
        convolving: the settings of a convolution, None for a linear layer.
        inputs_first: a linear weight is [inputs, outputs] instead of [outputs, inputs].
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    convolving: Settings | None = None
    inputs_first: bool = False


def layer_call(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> LayerCall | None:
    """The layer that a torch function computes, or None where it computes something else."""
    if func not in LAYERS:
        return None
    if func is F.linear:
        given = dict(zip(LINEAR, args)) | kwargs
        return LayerCall(given["input"], given["weight"], given.get("bias"))
    if func is torch.addmm and len(args) == 3 and not kwargs:
        given = dict(zip(ADDMM, args))
        return LayerCall(given["input"], given["weight"], given["bias"], inputs_first=True)
    if func is torch.addmm:
        return None  # scaled or written elsewhere
    if func in CONVOLUTIONS:
        return _convolution(CONVOLUTIONS[func], dict(zip(CONVOLUTION, args)) | kwargs, False)
    given = dict(zip(TRANSPOSED, args)) | kwargs
    return _convolution(TRANSPOSED_CONVOLUTIONS[func], given, True)


def _convolution(dims: int, given: dict[str, Any], transposed: bool) -> LayerCall | None:
    inputs, weight, padding = given["input"], given["weight"], given.get("padding", 0)
    if inputs.ndim != dims + 2:
        return None  # one sample without a batch dimension
    dilation = _each(given.get("dilation", 1), dims)
    if padding == "same":
        inputs, padding = _padded_to_same(inputs, weight, dilation), 0
    elif padding == "valid":
        padding = 0
    settings = Settings(
        stride=_each(given.get("stride", 1), dims),
        padding=_each(padding, dims),
        dilation=dilation,
        transposed=transposed,
        output_padding=_each(given.get("output_padding", 0), dims),
        groups=given.get("groups", 1),
    )
    return LayerCall(inputs, weight, given.get("bias"), settings)


def _padded_to_same(inputs: Tensor, weight: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """Zeros around the inputs, the odd one behind, so that the output is as large as they are."""
    sides: list[int] = []
    for size, step in zip(reversed(weight.shape[2:]), reversed(dilation)):
        total = step * (size - 1)
        sides += [total // 2, total - total // 2]
    return F.pad(inputs, sides)


def _each(number: Any, dims: int) -> tuple[int, ...]:
    if isinstance(number, int):
        return (number,) * dims
    numbers = tuple(number)
    return numbers * dims if len(numbers) == 1 else numbers
