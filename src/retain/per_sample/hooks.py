"""Hooks that a user has put on a parameter's gradient: a mask over frozen weights, for one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from retain.per_sample.sums import Sum

SIZES = (1.0, 1e-3, 1e3)  # of the made-up gradients: a threshold would treat them differently
CLOSE = 1e-4


def hooked(parameters: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters with a hook on their gradient."""
    return [name for name, p in parameters.items() if p._backward_hooks]


class Multipliers:
    """What the hooks on each parameter multiply the elements of its gradient with."""

    def __init__(self) -> None:
        self._of: dict[str, Tensor | None] = {}

    def apply(self, name: str, parameter: Tensor, powers: Sum) -> bool:
        """Multiply Σₖ|gₖ|ᵖ as the hooks multiply gₖ; False if they do anything else than multiply.

        Which factors they have is found by asking them about made-up gradients: g ↦ m g gives m for
        ones, and m g for every other. Later it is enough that they make of the sum what m does.
        """
        known = self._of.get(name)
        if known is None or not _is_made_of(known, parameter, powers.total):
            known = self._found(name, parameter)
        if known is not None:
            # |m g|ᵖ = |m|ᵖ |g|ᵖ
            powers.total.mul_(powers.raised(known))
        return known is not None

    def _found(self, name: str, parameter: Tensor) -> Tensor | None:
        found = _through(parameter, torch.ones_like(parameter, requires_grad=False))
        known = self._of.get(name)
        if known is None or not torch.equal(known, found):
            self._of[name] = found if _multiplies(parameter, found) else None
        return self._of[name]


def _is_made_of(factor: Tensor, parameter: Tensor, of: Tensor) -> bool:
    """Whether the hooks make m s of s, with few numbers held beside it."""
    if factor.dtype != of.dtype:
        return False
    given = of.clone()
    found = _through(parameter, given)
    off = factor * of if found is given else torch.mul(factor, of, out=given)
    return float(off.sub_(found).abs_().max()) == 0


def _multiplies(parameter: Tensor, factor: Tensor) -> bool:
    generator = torch.Generator(parameter.device).manual_seed(0)
    for size in SIZES:
        g = torch.empty_like(factor).uniform_(-size, size, generator=generator)
        expected = factor * g
        off = (_through(parameter, g) - expected).abs()
        if not bool((off <= CLOSE * expected.abs()).all()):
            return False
    return True


def _through(parameter: Tensor, gradient: Tensor) -> Tensor:
    with torch.no_grad():
        for hook in (parameter._backward_hooks or {}).values():
            given = hook(gradient)
            gradient = gradient if given is None else given
    return gradient
