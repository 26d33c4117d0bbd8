"""Hooks that a user has put on a parameter's gradient: a mask over frozen weights, for one."""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType

import torch
from torch import Tensor

from retain.per_sample.sums import Sum

SIZES = (1.0, 1e-3, 1e3)  # of the made-up gradients: a threshold would treat them differently
CLOSE = 1e-4
ROWS = 8  # of so many rows one is compared, each time another

SomeRows = slice | EllipsisType


def hooked(parameters: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters with a hook on their gradient."""
    return [name for name, p in parameters.items() if p._backward_hooks]


class Multipliers:
    """What the hooks on each parameter multiply the elements of its gradient with."""

    def __init__(self) -> None:
        self._of: dict[str, Tensor | None] = {}
        self._writing: set[str] = set()  # parameters with a hook that changes what it is given
        self._turn = 0

    def apply(self, name: str, parameter: Tensor, powers: Sum) -> bool:
        """Multiply Σₖ|gₖ|ᵖ as the hooks multiply gₖ; False if they do anything else than multiply.

        Which factors they have is found by asking them about made-up gradients: g ↦ m g gives m for
        ones, and m g for every other. Later it is enough that they make of the sum what m does: in
        some of its rows, each time others, where what they make of it is taken; else in all.
        """
        known, total = self._of.get(name), powers.total
        if known is not None and known.dtype == total.dtype:
            rows = self._rows(total) if powers.power == 1 else ...
            before, version = total[rows].clone(), total._version
            found = _through(parameter, total.clone() if name in self._writing else total)
            if total._version != version:  # for the first time: what it was given is gone
                return False
            if _is_product(found, known, total.shape, before, rows):
                # |m g|ᵖ = |m|ᵖ |g|ᵖ
                if powers.power == 1:
                    torch.abs(found, out=total)
                else:
                    total.mul_(powers.raised(known))
                return True
        known = self._found(name, parameter)
        if known is not None:
            total.mul_(powers.raised(known))
        return known is not None

    def _rows(self, total: Tensor) -> SomeRows:
        """Some of its rows, each time others; all, if they are few."""
        self._turn += 1
        some = total.ndim > 0 and len(total) > ROWS
        return slice(self._turn % ROWS, None, ROWS) if some else ...

    def _found(self, name: str, parameter: Tensor) -> Tensor | None:
        ones = torch.ones_like(parameter, requires_grad=False)
        version = ones._version
        found = _through(parameter, ones)
        if ones._version != version:
            self._writing.add(name)
        known = self._of.get(name)
        if known is None or not torch.equal(known, found):
            self._of[name] = found if _multiplies(parameter, found) else None
        return self._of[name]


def _is_product(
    found: Tensor, factor: Tensor, shape: torch.Size, before: Tensor, rows: SomeRows
) -> bool:
    """Whether what the hooks made of a sum is that factor times what it was, in these rows."""
    if found.shape != shape:
        return False
    return float((factor[rows] * before).sub_(found[rows]).abs_().max()) == 0


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
