"""In what precision a graph was computed, and how much of a difference rounding explains there."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """The narrowest floating point type of any result in a graph, as autocast may have made it.

    Three kinds of difference are told from rounding, each relative to what it is a part of:

    Attributes:
        dtype: that type.
        layout: of a gradient's elements, to the largest of the sample that owns them.
        share: of the gradients that a sample owns, taken together, to their own size.
        result: of outputs and sums in different orders of computing, to their own norm.
        zero: of a gradient that is zero in exact arithmetic, to the largest in the model.
    """

    dtype: torch.dtype

    @property
    def layout(self) -> float:
        """Noise is up to 1e-5 of it (float32, fifty layers); another sample's element, half."""
        return {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2}.get(self.dtype, 5e-2)

    @property
    def share(self) -> float:
        """As for layouts; sums of many elements wander less than each of them."""
        return {8: 1e-9, 4: 1e-4}.get(self.dtype.itemsize, 3e-2)

    @property
    def result(self) -> float:
        """Generous, since a model may compute in less precision inside; a wrong rule is far off."""
        return {8: 1e-6, 4: 1e-3}.get(self.dtype.itemsize, 1e-1)

    @property
    def zero(self) -> float:
        """Rounding noise, where nothing else is."""
        return {8: 1e-12, 4: 1e-6}.get(self.dtype.itemsize, 1e-2)

    @property
    def exponents(self) -> int:
        """How many powers of two a weight may span before gradients leave the type's range."""
        return 6 if self.dtype == torch.float16 else 32


def narrowest(*dtypes: torch.dtype) -> torch.dtype:
    """The floating point type with the fewest bits; of two with as many, the smaller range."""
    floating = [d.to_real() for d in dtypes if d.is_floating_point or d.is_complex]
    return min(floating, key=lambda d: (d.itemsize, torch.finfo(d).max), default=torch.float32)
