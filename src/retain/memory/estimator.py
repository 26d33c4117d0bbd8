"""What turns a batch into sums: the one thing in which the four memories differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from retain.samples.batches import Batch


class Made(NamedTuple):
    """An estimator, and what it was made for: the ids of parameters, and what is differentiated."""

    parameters: Mapping[str, int]
    differentiated: Mapping[str, object]
    estimator: Estimator


class Estimator(Protocol):
    """Sums over the samples of a batch, by parameter."""

    @property
    def routes(self) -> Mapping[str, str]:
        """How each of them was obtained in the last batch."""
        ...

    @property
    def precision(self) -> str | None:
        """What the operations of the last batch ran in, in words; None if it is not known."""
        ...

    @property
    def squared_norms(self) -> Tensor | None:
        """Σₖ ‖F(xₖ)‖² over the samples of the last batch; None if it is not known."""
        ...

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The sums; they may be overwritten by the next call.

        Raises:
            NonFiniteError: NaN or infinity in any of them.
        """
        ...
