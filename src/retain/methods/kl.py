"""KL: on the new inputs, the network shall answer as it did before the task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from retain.methods.lwf import LwF, LwFOptions, distillation
from retain.ranges import Positive


@dataclass(frozen=True)
class KLOptions(LwFOptions):
    """Defaults of KL, beside those of LwF: outputs are compared as they are."""

    temperature: Positive = 1.0


class KL(LwF):
    """Cross-entropy + λ KL(p_before ‖ p_now) on the new inputs: LwF that tells no heads apart.

    All old outputs together are one distribution, as in a network that was made for no tasks.
    """

    name = "kl"
    title = "KL"
    Options = KLOptions

    def distilled(self, new: Iterable[Tensor], old: Tensor) -> Tensor:
        """The cross-entropy of all old outputs as one distribution: KL up to a constant."""
        # KL(p ‖ q) = −Σ p log q + Σ p log p, whose second part no weight changes
        return distillation(torch.cat(list(new), 1), old, self.options.temperature)
