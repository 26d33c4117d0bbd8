"""What is differentiated: one number per sample, or several."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from retain.samples.batches import Batch


class Score(Protocol):
    """A number per sample, made from the model's output F(x) of shape [n, …]."""

    def target(self, output: Tensor, batch: Batch) -> Tensor | None:
        """What the score needs beside the output, drawn once per batch: [n, …], or None.

        It is cut along the batch when one sample is computed alone, so that a randomly drawn
        label is the same label in every way of computing.
        """
        ...

    def __call__(self, output: Tensor, target: Tensor | None) -> Tensor:
        """The scores s, [n] or, for several per sample, [scores, n]; differentiable in `output`."""
        ...
