"""Two bricks that make a model of the zoo short to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Net(nn.Module):
    """Modules and parameters by name, and a forward written as a function of them: `net.weight`."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self, *args, **kwargs)


def weight(*shape: int, scale: float | None = None) -> nn.Parameter:
    """A random parameter; unless said otherwise 1 / √(last dimension) large."""
    return nn.Parameter(torch.randn(shape) * (scale or (shape[-1] if shape else 1) ** -0.5))
