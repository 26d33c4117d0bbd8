"""A change of low rank of a layer's weight, for the layers that PEFT cannot adapt."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRankChange(nn.Module):
    """What a weight becomes: θ + (α/r) B A, with θ as a matrix of one row per output.

    The weight of a convolution in groups is one, too: its rows are shorter by the number of groups.

    Args:
        weight: [o outputs, inputs of a group, kernel …].
        rank: r.
        alpha: α.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows_oi = weight.detach().flatten(1)
        # As LoRA begins, and PEFT: A at random, B at zero, so that the change begins at none.
        self.a_ri = nn.Parameter(rows_oi.new_empty(rank, rows_oi.shape[1]))
        self.b_or = nn.Parameter(rows_oi.new_zeros(rows_oi.shape[0], rank))
        nn.init.kaiming_uniform_(self.a_ri, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        # θ + (α/r) B A   (Hu et al. 2022, section 4.1)
        return weight + self.scale * (self.b_or @ self.a_ri).view(weight.shape)


def change_by_low_rank(layer: nn.Module, rank: int, alpha: float) -> None:
    """Let what is trained of `layer.weight` be a change of low rank, of none at first."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", LowRankChange(weight, rank, alpha))


def merge_changes(network: nn.Module) -> None:
    """Write every change into the weight that it is of; the layers are plain ones again."""
    for layer in list(network.modules()):
        lists = getattr(layer, "parametrizations", {})
        if any(isinstance(one, LowRankChange) for several in lists.values() for one in several):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
