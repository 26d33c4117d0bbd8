"""σ(z)·σ′(z) of each elementwise non-linearity: half of ∂σ(z)²/∂z, from z alone.

A formula takes what the torch function of its name takes. Derivatives are the kernels that torch
itself uses, so that kinks (ReLU at 0, ReLU6 at 6) count as in any other gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _slope(name: str) -> Callable[..., Tensor]:
    """(g, z or σ(z), …) → g σ′(z): the elementwise kernel that torch differentiates with."""
    kernel: Callable[..., Tensor] = getattr(torch.ops.aten, f"{name}_backward")
    return kernel


@dataclass(frozen=True)
class Activation:
    """A non-linearity σ as it was called."""

    formula: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """What it is called in torch."""
        return self.formula.__name__

    @property
    def along_channels(self) -> bool:
        """Whether σ has a parameter per channel, so that it matters which dimension counts them."""
        return self.formula is prelu

    @property
    def is_half_slope(self) -> bool:
        """Whether σ(z)·σ′(z) = σ(z) for every z."""
        return self.formula is relu

    @property
    def never_negative(self) -> bool:
        """Whether σ(z)·σ′(z) ≥ 0 for every z."""
        return self.formula in NEVER_NEGATIVE

    def half_slope(self, z: Tensor) -> Tensor:
        """σ(z)·σ′(z), elementwise, in a tensor of its own."""
        return self.formula(z, *self.arguments, **self.options)


def activation(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Activation | None:
    """The σ that a torch function stands for, or None where it is no elementwise non-linearity."""
    formula = FORMULAS.get(func)
    if formula is None or not args or (formula is rrelu and kwargs.get("training")):
        return None
    options = {key: value for key, value in kwargs.items() if key not in ("inplace", "training")}
    if formula is not prelu and any(isinstance(v, Tensor) for v in (*args[1:], *options.values())):
        return None  # bounds that are tensors may differ from element to element
    return Activation(formula, args[1:], options)


def relu(z: Tensor) -> Tensor:
    """σ = σσ′ = max(z, 0)."""
    return z.clamp_min(0)


def relu6(z: Tensor) -> Tensor:
    """σ = min(max(z, 0), 6)."""
    return hardtanh(z, 0.0, 6.0)


def hardtanh(z: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """σ = z between the bounds, and σ′ = 0 on and beyond them."""
    return _slope("hardtanh")(z, z, min_val, max_val)


def clamp(z: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """σ = z between the bounds, either of which may be missing."""
    # σ′ is 1 on the bounds themselves, as in torch
    y = z.clamp(min, max)
    return y * (y == z)


def leaky_relu(z: Tensor, negative_slope: float = 0.01) -> Tensor:
    """σ = z, times the slope where z < 0."""
    return _slope("leaky_relu")(F.leaky_relu(z, negative_slope), z, negative_slope, False)


def rrelu(z: Tensor, lower: float = 1 / 8, upper: float = 1 / 3) -> Tensor:
    """In eval mode a leaky ReLU with the mean slope."""
    return leaky_relu(z, (lower + upper) / 2)


def prelu(z: Tensor, weight: Tensor) -> Tensor:
    """σ = z, times a learned slope (one, or one per channel) where z < 0."""
    slope = (
        weight.detach() if weight.numel() == 1 else weight.detach().view(-1, *[1] * (z.ndim - 2))
    )
    return torch.where(z > 0, z, z * slope.square())


def threshold(z: Tensor, threshold: float, value: float) -> Tensor:
    """σ = z above the threshold, a constant, without slope, below."""
    return _slope("threshold")(z, z, threshold)


def elu(z: Tensor, alpha: float = 1.0) -> Tensor:
    """σ = z, or α (eᶻ − 1) where z < 0."""
    return _slope("elu")(F.elu(z, alpha), alpha, 1, 1, False, z)


def celu(z: Tensor, alpha: float = 1.0) -> Tensor:
    """σ = z, or α (e^(z/α) − 1) where z < 0."""
    return _slope("elu")(F.celu(z, alpha), alpha, 1, 1 / alpha, False, z)


def selu(z: Tensor) -> Tensor:
    """σ = ELU with the constants that keep mean 0 and variance 1."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return _slope("elu")(F.selu(z), alpha, scale, 1, False, z)


def gelu(z: Tensor, approximate: str = "none") -> Tensor:
    """σ = z Φ(z)."""
    return _slope("gelu")(F.gelu(z, approximate=approximate), z, approximate=approximate)


def silu(z: Tensor) -> Tensor:
    """σ = z sigmoid(z)."""
    return _slope("silu")(F.silu(z), z)


def mish(z: Tensor) -> Tensor:
    """σ = z tanh(softplus(z))."""
    return _slope("mish")(F.mish(z), z)


def hardswish(z: Tensor) -> Tensor:
    """σ = z hardsigmoid(z)."""
    return _slope("hardswish")(F.hardswish(z), z)


def hardsigmoid(z: Tensor) -> Tensor:
    """σ = z/6 + ½, between 0 and 1."""
    return _slope("hardsigmoid")(F.hardsigmoid(z), z)


def sigmoid(z: Tensor) -> Tensor:
    """σ = 1 / (1 + e⁻ᶻ)."""
    y = torch.sigmoid(z)
    return _slope("sigmoid")(y, y)


def tanh(z: Tensor) -> Tensor:
    """σ = tanh z."""
    y = torch.tanh(z)
    return _slope("tanh")(y, y)


def softplus(z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """σ = log(1 + e^(βz)) / β."""
    return _slope("softplus")(F.softplus(z, beta, threshold), z, beta, threshold)


def logsigmoid(z: Tensor) -> Tensor:
    """σ = log sigmoid(z), σ′ = sigmoid(−z)."""
    return F.logsigmoid(z) * torch.sigmoid(-z)


def softsign(z: Tensor) -> Tensor:
    """σ = z / (1 + |z|), σ′ = 1 / (1 + |z|)²."""
    return z / (1 + z.abs()) ** 3


def tanhshrink(z: Tensor) -> Tensor:
    """σ = z − tanh z, σ′ = tanh² z."""
    y = torch.tanh(z)
    return (z - y) * y.square()


def softshrink(z: Tensor, lambd: float = 0.5) -> Tensor:
    """σ = z moved towards 0 by λ, and 0 within λ of it."""
    return _slope("softshrink")(F.softshrink(z, lambd), z, lambd)


def hardshrink(z: Tensor, lambd: float = 0.5) -> Tensor:
    """σ = z, and 0 within λ of it."""
    return _slope("hardshrink")(z, z, lambd)


def clamp_min(z: Tensor, min: float) -> Tensor:
    """σ = max(z, bound)."""
    return clamp(z, min, None)


def clamp_max(z: Tensor, max: float) -> Tensor:
    """σ = min(z, bound)."""
    return clamp(z, None, max)


KNOWN = (
    *(relu, relu6, hardtanh, clamp, clamp_min, clamp_max, leaky_relu, rrelu, prelu, threshold),
    *(elu, celu, selu, gelu, silu, mish, hardswish, hardsigmoid, sigmoid, tanh, softplus),
    *(logsigmoid, softsign, tanhshrink, softshrink, hardshrink),
)


# σ and σ′ are never of different signs.
NEVER_NEGATIVE = frozenset({relu, relu6, sigmoid, hardsigmoid, softplus})


def _functions_called(name: str) -> set[Any]:
    """Every function of torch that computes the non-linearity, in place or not."""
    names = (name, f"{name}_", f"_{name}")
    found = {getattr(home, n, None) for home in (torch, Tensor, F) for n in names}
    return found - {None}


# torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, … → relu
FORMULAS: dict[Any, Callable[..., Tensor]] = {
    func: formula for formula in KNOWN for func in _functions_called(formula.__name__)
}
FORMULAS |= dict.fromkeys(_functions_called("clip"), clamp)
