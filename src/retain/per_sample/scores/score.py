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


class FirstScores:
    """The first few of another score's rows: a self-check need not see a thousand outputs."""

    count = 2

    def __init__(self, score: Score) -> None:
        self._score = score

    def target(self, output: Tensor, batch: Batch) -> Tensor | None:
        """As the other score's."""
        return self._score.target(output, batch)

    def __call__(self, output: Tensor, target: Tensor | None) -> Tensor:
        """[n], or [at most `count`, n]."""
        scores = self._score(output, target)
        return scores if scores.ndim == 1 else scores[: self.count]
