"""Where a network's convolutional part ends: find its features, read them, change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retain.borrowed import borrowed

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_convolutional(backbone: nn.Module, inputs: Tensor) -> str | None:
    """The name of the module whose output is the last convolutional feature map, or None.

    That is the last module whose output is a map [n, channels, positions …] with more than one
    position, after a convolution has run: activation and pooling included, as EBLL's features
    are. A network whose only convolution cuts the image into patches counts as having none.
    """
    seen: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    names = {module: name for name, module in backbone.named_modules()}
    with ExitStack() as stack:
        for module in backbone.modules():

            def note(module: nn.Module, _inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    seen.append((names[module], module, tuple(output.shape)))

            stack.callback(module.register_forward_hook(note).remove)
        stack.enter_context(borrowed(backbone))
        stack.enter_context(torch.no_grad())
        backbone(inputs)
    convolved = [place for place, (_, module, _) in enumerate(seen) if _convolves(module)]
    if not convolved:
        return None
    dims = len(seen[convolved[0]][2])
    after = seen[convolved[0] :]
    maps = [(name, shape) for name, _, shape in after if len(shape) == dims]
    wide = [name for name, shape in maps if torch.Size(shape[2:]).numel() > 1]
    # A container that ends in the map has the same output: the name that was seen last is it.
    return (wide or [name for name, _ in maps])[-1]


def _convolves(module: nn.Module) -> bool:
    """Whether `module` is a convolution that mixes neighbours, not one that cuts patches."""
    if not isinstance(module, CONVOLUTIONS):
        return False
    return module.stride != module.kernel_size or set(module.kernel_size) == {1}


@contextmanager
def tap(module: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of `module` while the context lasts, in a list that fills as it runs."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def change_convolutional(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context the output of `module`, flattened to [n, d], goes through `change`."""

    def changed(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return change(output.flatten(1)).view_as(output)

    handle = module.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()
