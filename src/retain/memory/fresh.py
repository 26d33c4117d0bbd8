"""Layers that look as their initialisation left them, in a network that has been trained."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from retain.importance import Importance
from retain.parameters import named_parameters
from retain.saying import warn

WRITES = 3  # what initialising, casting and loading leave on a version counter; steps leave more
ENOUGH = 2  # weights of a layer that was written to once, when it was made
LOADED = 256  # … of one that may have been copied or loaded, of which a spread can be told
MANY = 4096  # … of which it can be told whether they are normally distributed
HERE = 32  # … of a layer beside others that were trained in this process, or loaded; it was not
SIGMAS = 4  # standard errors by which such a sample may be off
EDGE = 1.1  # … and its largest singular value
SLACK = 0.12  # of the spread that is expected, for layers that are not large


def warn_of_fresh(model: nn.Module, observed: Importance) -> None:
    """Say so if the data went through layers that were never trained."""
    fresh = fresh_layers(model, [name for name, omega in observed.items() if omega.any()])
    if fresh:
        warn(
            f"{', '.join(fresh)}: still as initialised, in an otherwise trained network. Their Ω "
            "describes random outputs, and consolidate() holds the random weights, too. Train them "
            "first and observe afterwards, or select trained outputs with output=…. (Not detected: "
            f"layers of fewer than {MANY} weights that were saved before they were trained.)"
        )


def fresh_layers(model: nn.Module, observed: Collection[str]) -> list[str]:
    """Names of observed layers that were never trained; none if that is true of all of them.

    A layer is taken for fresh if its weights were hardly ever written to, and are spread as
    PyTorch's initialisers spread them: within their bound and evenly, normally with their standard
    deviation, orthogonally, or around a bias that is still exactly 0. Training leaves none of
    these. Few weights look so by chance; they count if others were trained in this process, or were
    in the file that transformers loaded, and they were not.
    """
    layers = dict(_layers(model, observed))
    trained = any(_writes(*layer) > WRITES for layer in layers.values())
    loaded = any(_was_in_file(weight) for weight, _ in layers.values())
    fresh = [
        name
        for name, (weight, bias) in layers.items()
        if _is_fresh(
            weight, bias, HERE if trained or (loaded and not _was_in_file(weight)) else MANY
        )
    ]
    return fresh if len(fresh) < len(layers) else []


def _layers(
    model: nn.Module, observed: Collection[str]
) -> Iterator[tuple[str, tuple[Tensor, Tensor | None]]]:
    parameters = named_parameters(model)
    for name in observed:
        module, _, attribute = name.rpartition(".")
        if attribute == "weight" and name in parameters and parameters[name].ndim >= 2:
            yield module or name, (parameters[name], parameters.get(f"{module}.bias"))


def _was_in_file(weight: Tensor) -> bool:
    """Whether `from_pretrained` of transformers marked it: what was missing it initialised."""
    return bool(getattr(weight, "_is_hf_initialized", False))


def _writes(weight: Tensor, bias: Tensor | None) -> int:
    """How often a layer was written to, as far as PyTorch counts it."""
    counted = [t._version for t in (weight, bias) if t is not None and not t.is_inference()]
    return max(counted, default=WRITES + 1)


def _is_fresh(weight: Tensor, bias: Tensor | None, many: int) -> bool:
    written = _writes(weight, bias)
    if written > WRITES or not weight.numel() or weight.device.type == "meta":
        return False
    w = weight.detach().float()
    if bias is not None and bias.requires_grad and not bias.detach().any():
        return bool(w.any())
    enough = ENOUGH if written == 1 else min(LOADED, many)  # a copy, or loaded, tells less
    if w.numel() < enough:
        return False
    inputs, outputs = w[0].numel(), w.shape[0] * max(1, w[0, 0].numel())
    bounds = (1 / math.sqrt(inputs), math.sqrt(6 / (inputs + outputs)), math.sqrt(6 / inputs))
    # Kaiming's, LeCun's and Xavier's, and those that transformers are begun with
    deviations = (
        *(math.sqrt(gain / n) for gain in (2, 1) for n in (inputs, outputs)),
        math.sqrt(2 / (inputs + outputs)),
        *(0.02, 0.01),
    )
    if bias is not None and float(bias.detach().abs().max()) > bounds[0] * 1.001:
        return False
    return (
        any(_is_even(w, bound) for bound in bounds)
        or any(_is_normal(w.flatten(1), deviation, many) for deviation in deviations)
        or _is_orthogonal(w.flatten(1))
    )


def _is_even(w: Tensor, bound: float) -> bool:
    """Whether `w` is spread evenly between ± `bound`, and nowhere beyond."""
    if float(w.abs().max()) > bound * 1.001:
        return False
    slack = max(SLACK, 2 / math.sqrt(w.numel()))
    spread = float(w.square().mean().sqrt()) / (bound / math.sqrt(3))
    return abs(spread - 1) <= slack


def _is_normal(w: Tensor, deviation: float, many: int) -> bool:
    """Whether the elements of a matrix are independent of each other, and normally distributed.

    Their second and fourth moments tell, the lengths of rows and columns, and the largest singular
    value: σ(√m + √n) for m × n independent ones (Marchenko and Pastur). What training adds is of
    low rank, and stands out.
    """
    count = w.numel()
    if count < many:
        return False
    variance = float(w.square().mean())
    if not variance or abs(math.log(variance / deviation**2)) > SIGMAS * math.sqrt(2 / count):
        return False
    if abs(float(w.mean())) > SIGMAS * deviation / math.sqrt(count):
        return False
    if abs(float((w / deviation).pow(4).mean()) - 3) > SIGMAS * math.sqrt(96 / count):
        return False
    for along in (0, 1):  # no row or column is longer or shorter than chance has it
        lengths = w.square().mean(along) / deviation**2
        few = w.shape[along] < HERE  # numbers, of which any length is to be expected
        if not few and float((lengths - 1).abs().max()) > (SIGMAS + 1) * math.sqrt(
            2 / w.shape[along]
        ):
            return False
    edge = deviation * (math.sqrt(w.shape[0]) + math.sqrt(w.shape[1]))
    return _largest_singular_value(w) <= EDGE * edge


def _is_orthogonal(w: Tensor) -> bool:
    """Whether rows or columns, the fewer, are orthogonal and of one length."""
    square = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    length = float(square.diagonal().mean())
    if min(w.shape) < ENOUGH or not length:
        return False
    apart = square - length * torch.eye(len(square), device=w.device)
    return float(apart.abs().max()) <= 1e-4 * length


def _largest_singular_value(w: Tensor) -> float:
    """From below, by a few iterations; what stands out is found at once."""
    x = torch.linspace(1, 2, w.shape[1], device=w.device)
    for _ in range(10):
        x = w.T @ (w @ x)
        x = x / torch.linalg.vector_norm(x).clamp(min=1e-30)
    return float(torch.linalg.vector_norm(w @ x))
