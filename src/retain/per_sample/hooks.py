"""Hooks that a user has put on a parameter's gradient: a mask over frozen weights, for one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SIZES = (1.0, 1e-3, 1e3)  # of the made-up gradients: a threshold would treat them differently
CLOSE = 1e-4


def hooked(parameters: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters with a hook on their gradient."""
    return [name for name, p in parameters.items() if p._backward_hooks]


class Multipliers:
    """What the hooks on each parameter multiply the elements of its gradient with."""

    def __init__(self) -> None:
        self._of: dict[str, Tensor | None] = {}

    def of(self, name: str, parameter: Tensor) -> Tensor | None:
        """The factor of every element; None if the hooks do anything else than multiply.

        Found by asking them about made-up gradients: g ↦ m g gives m for ones, and m g for every
        other. Later it is enough that ones still give the same.
        """
        ones = torch.ones_like(parameter, requires_grad=False)
        found = _through(parameter, ones.clone())
        known = self._of.get(name)
        if known is None or not torch.equal(known, found):
            self._of[name] = found if _multiplies(parameter, found) else None
        return self._of[name]


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
