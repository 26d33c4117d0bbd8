"""Mixed precision: forward passes in fewer bits; weights, their updates and Ω in full."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """How a run computes on `device`: in full precision, or with `amp` in mixed precision.

    On CUDA the fewer bits are float16, whose gradients are scaled so that they do not vanish;
    elsewhere bfloat16, which has the range of float32.
    """

    amp: bool
    device: torch.device

    @property
    def scales(self) -> bool:
        """Whether gradients are scaled, so that a step with infinite ones is skipped."""
        return self.amp and self.device.type == "cuda"

    def lowered(self) -> torch.autocast:
        """A context for forward passes."""
        fewer = torch.float16 if self.scales else torch.bfloat16
        return torch.autocast(self.device.type, fewer, enabled=self.amp)

    def scaler(self) -> torch.amp.GradScaler:
        """What scales the loss and takes the steps; one that changes nothing where none is needed.

        Call its `unscale_` before `step`: what is attached to the optimizer sees true gradients.
        """
        return torch.amp.GradScaler(self.device.type, enabled=self.scales)
