"""The yardstick of all prices: how long a plain forward and backward pass of a batch takes."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from retain.borrowed import fused
from retain.per_sample.below import any_older, beginning, inputs_first
from retain.per_sample.forward import Forward
from retain.per_sample.lent import taken_gradients
from retain.per_sample.prices import LONG, seconds_on
from retain.per_sample.switches import without_autocast
from retain.samples.batches import Batch
from retain.samples.outputs import checked, output_of


class PlainPass:
    """Times the pass that training would make."""

    def __init__(self, forward: Forward) -> None:
        self._forward, self._parameters = forward, forward.parameters
        first = next(iter(forward.parameters.values()), torch.zeros(()))
        self._device = first.device
        self.scores = 1  # per sample; training would make a backward pass for each

    def clock(self) -> float:
        """Seconds, of which only differences mean anything."""
        return seconds_on(self._device)

    def forward_at_least(self, seconds: float) -> float:
        """What a plain forward takes at least, if that in the engine took so many seconds.

        Nothing is known of recurrence, which is fused there and taken step by step here.
        """
        every = self._forward.model.modules()
        return 0.0 if any(isinstance(one, nn.RNNBase) for one in every) else seconds

    def seconds(self, batch: Batch, target: Tensor | None) -> float:
        """How long a plain forward and backward pass takes, with a backward for each score.

        If it is long, a backward counts as two forwards: the gradients of a large model would stand
        beside its sums.
        """
        parameters = [p for p in self._parameters.values() if p.requires_grad]
        forward = self._forward
        # on accelerators, fused recurrence in eval mode has no backward
        own = fused() if self._device.type == "cpu" else nullcontext()
        with own, forward.written_aside(), torch.enable_grad():
            if forward.written:  # whoever trains does not find them as they were
                output_of(forward.model, batch, forward.output)
            since = beginning()
            start = self.clock()
            output = checked(output_of(forward.model, batch, forward.output), batch.samples)
            scores, _ = forward.scores(output, target, batch)
            total = scores.sum()
            ahead = self.clock() - start
            if ahead > LONG:
                back = 2 * ahead
            else:
                keep = total.grad_fn is not None and any_older(inputs_first(total.grad_fn), since)
                start = self.clock()
                with without_autocast():
                    _ = torch.autograd.grad(total, parameters, retain_graph=keep, allow_unused=True)
                back = self.clock() - start
        taken_gradients(self._parameters)
        return ahead + back * self.scores
