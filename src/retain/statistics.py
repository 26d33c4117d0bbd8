"""Running statistics of normalisation: which layers move them, and how to keep them as they are."""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import Self

from retain.errors import InputError
from retain.parameters import Patterns, matches, patterns_of, unwrapped

# What buffers are called in which layers average what they see: batch-norm's own, those of layers
# that people write themselves, and of codebooks.
AVERAGES = frozenset({"running", "moving", "ema"})

# How many handles keep a layer in eval mode, whatever `train()` has said since its last call.
_kept: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class FrozenStatistics:
    """The handle that `frozen_statistics` returns: `remove()` it, or use it as a context manager.

    Attributes:
        layers: the names of the layers whose statistics stay.

    Examples:
        >>> batch_norm = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> frozen = retain.frozen_statistics(batch_norm)  # a FrozenStatistics
        >>> frozen.layers
        ('1',)
    """

    def __init__(self, model: nn.Module, also: Patterns = None) -> None:
        self._model = model
        layers = layers_with_statistics(model) | _picked(model, also)
        self.layers = tuple(layers)
        self._hooks = [
            # Who was in eval mode while the model was not is left there afterwards, too.
            (layer, layer.training or not model.training, layer.register_forward_pre_hook(hook))
            for layer in layers.values()
            for hook in [partial(_to_eval, getattr(layer, "momentum", None))]
        ]
        for layer in layers.values():
            _kept[layer] = _kept.get(layer, 0) + 1
        self.hold()

    def hold(self) -> None:
        """Put the layers in eval mode now, and not only when they are called.

        Examples:
            >>> batch_norm = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
            >>> frozen = retain.frozen_statistics(batch_norm)
            >>> batch_norm.train()[1].training  # until it is called
            True
            >>> frozen.hold()
            >>> batch_norm[1].training
            False
        """
        for layer, _follows, _hook in self._hooks:
            layer.training = False

    def remove(self) -> None:
        """Let the statistics move again; a second time changes nothing.

        Examples:
            >>> batch_norm = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
            >>> frozen = retain.frozen_statistics(batch_norm)
            >>> frozen.remove()
            >>> _ = batch_norm(x)
            >>> int(batch_norm[1].num_batches_tracked)  # moves again
            1
        """
        for layer, follows, hook in self._hooks:
            hook.remove()
            _kept[layer] = _kept.get(layer, 1) - 1
            if follows and _kept[layer] <= 0:
                layer.training = self._model.training
        self._hooks = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def frozen_statistics(model: nn.Module, *, also: Patterns = None) -> FrozenStatistics:
    """A handle; until it is removed, running statistics of `model` are used and never moved.

    A network whose batch-norm statistics follow new data forgets the old however well its weights
    are held. With this, layers that keep running statistics (batch-norm of any kind, instance-norm
    that tracks them) stay in eval mode, also after `model.train()`; everything else is as ever, and
    their weights are still trained.

        with retain.frozen_statistics(model):
            train(model)

    Args:
        model: the network, wrapped in any way. One without such layers is left as it is.
        also: names or patterns of further layers that average what they see, of one's own, whose
            buffers are not called `running_…`, `moving_…` or `ema_…`.

    Returns:
        A handle with `remove()`, which is also a context manager.

    Raises:
        InputError: not a torch.nn.Module, or an `also` that matches no layer with buffers.

    Examples:
        >>> import torch, retain
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).train()
        >>> with retain.frozen_statistics(model) as frozen:
        ...     answer = model(torch.randn(8, 4))
        >>> frozen.layers, int(model[1].num_batches_tracked)
        (('1',), 0)
    """
    return FrozenStatistics(unwrapped(model), also)


def layers_with_statistics(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` that keep running statistics, by name.

    They have floating buffers that are named as such: `running_mean`, `ema_cluster_size`, ….
    """
    return {
        name or type(model).__name__: module
        for name, module in model.named_modules()
        if any(
            buffer.is_floating_point() and AVERAGES & set(called.lower().split("_"))
            for called, buffer in module.named_buffers(recurse=False)
        )
    }


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the buffers of the layers that keep running statistics, by their names."""
    return {
        f"{name}.{buffer}": tensor.clone()
        for name, layer in model.named_modules()
        if layer in set(layers_with_statistics(model).values())
        for buffer, tensor in layer.named_buffers(recurse=False)
    }


def moves_statistics(layer: nn.Module) -> bool:
    """Whether a call of such a layer would move its statistics now."""
    still = isinstance(layer, _NormBase) and layer.momentum == 0
    return layer.training and _kept.get(layer, 0) <= 0 and not still


def _picked(model: nn.Module, also: Patterns) -> dict[str, nn.Module]:
    """The layers with floating buffers that `also` names."""
    if also is None:
        return {}
    wanted = patterns_of("also", also)
    known = {
        name or type(model).__name__: layer
        for name, layer in model.named_modules()
        if any(buffer.is_floating_point() for buffer in layer.buffers(recurse=False))
    }
    found = {n: layer for n, layer in known.items() if any(matches(n, one) for one in wanted)}
    idle = [one for one in wanted if not any(matches(name, one) for name in known)]
    if idle:
        raise InputError(
            f"also= matches no layer with buffers: {', '.join(map(repr, idle))}. The model has "
            f"{', '.join(known) or 'none'}."
        )
    return found


def _to_eval(momentum: float | None, layer: nn.Module, inputs: Any) -> None:
    """A hook before the forward pass; no lambda, so that copies and pickles keep it.

    Not while somebody takes the statistics anew, from nothing and over all batches alike, as
    `torch.optim.swa_utils.update_bn` does of an average of models: then momentum is None.
    """
    if layer.training and not (momentum is not None and layer.momentum is None):
        layer.training = False
