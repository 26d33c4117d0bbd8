"""Synaptic Intelligence: how much each weight's way through training lowered the loss.

ω = −Σ_steps g · Δθ, with g the gradient of the task's loss alone, and at the end of a task
Ω = max(ω, 0) / (Δ_task² + ξ).   (Zenke, Poole, Ganguli, ICML 2017, eq. 4 and 5)
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from retain.parameters import summed_in


class Stretch:
    """A way between two evaluations of the gradient: where it began, and downhill in which way.

    Copies, never views: the live weights are about to move.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]
    ) -> None:
        self.parameters = dict(parameters)
        self.before = {name: p.detach().clone() for name, p in parameters.items()}
        self.gradients = {name: g.detach().clone() for name, g in gradients.items()}

    def done(self) -> dict[str, Tensor]:
        """−g · Δθ for every parameter, the weights having moved."""
        walked = {}
        for name, p in self.parameters.items():
            dtype = summed_in(p.dtype)
            back = self.before[name].to(dtype) - p.detach().to(dtype)
            # ω ← ω − g · Δθ
            walked[name] = back.mul_(self.gradients[name])
        return walked


def importance(
    omega: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    damping: float,
) -> dict[str, Tensor]:
    """Ω = max(ω, 0) / (Δ_task² + ξ), Δ_task from `start` to the weights as they are now."""
    return {
        name: path.clamp(min=0)
        / ((parameters[name].detach().to(path) - start[name].to(path)).square() + damping)
        for name, path in omega.items()
    }
