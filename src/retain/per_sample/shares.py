"""Whether a plan that has grown holds for a batch: every sample's share must grow by its weight."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.per_sample.frontier import ResultKey
from retain.per_sample.layout import Blocks, find_blocks
from retain.per_sample.plan import Plan
from retain.per_sample.precision import Precision


class Shares:
    """How much of the gradient at each point of the frontier each sample owns, by the layouts.

    Two passes in which the samples' scores have different weights tell whether the layouts hold:
    every sample's share must have grown by its own weight. With powers of two this is exact.
    """

    def __init__(self, plan: Plan, precision: Precision) -> None:
        self._precision = precision
        self._layouts = plan.frontier.layouts
        self._likely, self._fitting = plan.frontier.likely, plan.frontier.fitting
        self._silent = Silence(plan)
        self._of: dict[ResultKey, Tensor] = {}
        self._whole: dict[ResultKey, Tensor] = {}

    def see(self, at: int, grads: tuple[Tensor | None, ...]) -> None:
        """Take in the gradients that arrive at a node."""
        self._silent.see(at, grads)
        for output, grad in enumerate(grads):
            layout = self._layouts.get((at, output))
            if grad is not None and isinstance(layout, Blocks):
                split = layout.split(grad)
                over = [d for d in range(split.ndim) if d != layout.dim + 1]
                wide = None if grad.dtype.itemsize >= 4 else torch.float32
                energy = split.abs().sum(over, dtype=wide)  # several times as quick as a norm
                self._of[at, output] = energy.double()
                if (at, output) in self._likely:
                    self._whole[at, output] = grad.detach().clone()

    def agree(self, others: Shares, weights: Tensor) -> bool:
        """Whether `others`, seen with `weights`, is what the layouts say it must be."""
        precision = self._precision
        if self._silent.broken or others._silent.broken:
            return False
        return self._of.keys() == others._of.keys() and all(
            bool(
                (
                    (others._of[key] / weights.double() - share).abs()
                    <= precision.share * share + precision.zero * share.max()
                ).all()
            )
            for key, share in self._of.items()
        )

    def prove(self, others: Shares, weights: Tensor) -> bool:
        """Whether no other layout than the likely ones fits what `others`, too, has seen.

        And what fitted fewer samples: where a sequence is by one longer than a multiple of the
        samples, another layout fits as well, but not for another number of samples.
        """
        passes, precision = [torch.ones_like(weights), weights], self._precision
        for key in self._likely & self._whole.keys():
            before = {layout.order for layout in self._fitting[key] if isinstance(layout, Blocks)}
            fits = find_blocks([self._whole[key], others._whole[key]], passes, precision)
            if [one for one in fits if one.order in before] != [self._layouts[key]]:
                return False
        return True


class Silence:
    """Whether gradients that were zero when a plan was made, are; if not, it says nothing of them.

    What it takes in may be of several passes. The device is waited for once, at the end.
    """

    def __init__(self, plan: Plan) -> None:
        self._keys = plan.frontier.silent
        self._heard: list[Tensor] = []

    def see(self, at: int, grads: tuple[Tensor | None, ...]) -> None:
        """Take in the gradients that arrive at a node."""
        for output, grad in enumerate(grads):
            if grad is not None and (at, output) in self._keys:
                self._heard.append(grad.any())

    @property
    def broken(self) -> bool:
        """Whether any is not zero."""
        return bool(self._heard) and bool(torch.stack(self._heard).any())
