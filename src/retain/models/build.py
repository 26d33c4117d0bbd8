"""From a specification such as `mlp` or `resnet18` to a network with heads for tasks."""

from __future__ import annotations

from pathlib import Path

from retain.closest import did_you_mean
from retain.errors import ConfigError
from retain.models.network import TaskNetwork
from retain.models.seeded import seeded
from retain.models.small import MLP, SmallConv

SMALL: dict[str, type[MLP] | type[SmallConv]] = {"mlp": MLP, "cnn": SmallConv}


def build_model(
    spec: str,
    *,
    input_shape: tuple[int, ...],
    seed: int,
    weights: str | Path | None = None,
    shared_head: bool = False,
) -> TaskNetwork:
    """The network that `spec` names, without a head yet.

    Args:
        spec: `mlp`, `cnn`, a torchvision or timm name, or `path/to/file.py:function`.
        input_shape: of one input, without the batch dimension.
        seed: of the initialisation, which leaves the global random state alone.
        weights: a file of weights, or "default" for torchvision's or timm's own.
        shared_head: one head for all tasks (domain-incremental).

    Raises:
        ConfigError: an unknown name.
    """
    if spec not in SMALL:
        raise ConfigError(f"No model is called {spec!r}.{did_you_mean(spec, SMALL)}")
    with seeded(seed):
        backbone = SMALL[spec](input_shape)
    return TaskNetwork(backbone, backbone.feature_size, shared_head=shared_head, seed=seed)
