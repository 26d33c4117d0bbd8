"""How far an optimizer moves each weight for a gradient that lasts: its own η."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from retain.penalty import Metric


def step_size(
    optimizer: Optimizer, group: Mapping[str, Any], p: nn.Parameter
) -> tuple[float, Metric | None]:
    """(η, H): the optimizer moves `p` by η/H, weight by weight, for a lasting gradient of one.

    With this η/H in the proximal step, training comes to rest where the gradients of the task's
    loss and of the penalty cancel, whatever the optimizer: λ means the same for SGD with and
    without momentum, Adam, AdamW, NAdam, RMSprop and Adagrad. For others it is the learning rate.
    """
    rate = float(group["lr"])
    state: Mapping[str, Any] = optimizer.state.get(p, {})
    eps = float(group.get("eps", 0.0))
    if _fits(state.get("exp_avg_sq"), p) and "betas" in group:
        # Adam: θ ← θ − η m̂ / (√v̂ + ε),   v̂ = v / (1 − β₂ᵗ)
        square = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        correction = 1 - float(group["betas"][1]) ** float(state["step"])
        return rate, Metric(square, correction**-0.5, eps)
    if _fits(state.get("square_avg"), p) and not group.get("centered") and "alpha" in group:
        # RMSprop: θ ← θ − η g / (√v + ε)
        return rate * _lasting(group), Metric(state["square_avg"], 1.0, eps)
    if _fits(state.get("sum"), p) and "lr_decay" in group:
        # Adagrad: θ ← θ − η/(1 + (t − 1)·decay) g / (√Σg² + ε)
        decayed = 1 + (float(state["step"]) - 1) * float(group["lr_decay"])
        return rate / decayed, Metric(state["sum"], 1.0, eps)
    return rate * _lasting(group), None


def _lasting(group: Mapping[str, Any]) -> float:
    """What momentum makes of a gradient that lasts: (1 − dampening) Σ μᵏ = (1 − d)/(1 − μ)."""
    momentum = float(group.get("momentum") or 0.0)
    if not 0 < momentum < 1:
        return 1.0
    return (1 - float(group.get("dampening") or 0.0)) / (1 - momentum)


def _fits(state: object, p: nn.Parameter) -> bool:
    return isinstance(state, Tensor) and state.shape == p.shape
