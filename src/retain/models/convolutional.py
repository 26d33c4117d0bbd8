"""Where a network's convolutional part ends: find its features, read them, change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retain.borrowed import borrowed

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ModuleUse:
    """The output of a module of a network at one of its uses (counted from 0) in a pass."""

    module: str
    use: int


@dataclass(frozen=True)
class ModuleOutput:
    """What came out at a place while a network ran."""

    place: ModuleUse
    of: nn.Module
    shape: tuple[int, ...]


def last_convolutional(backbone: nn.Module, inputs: Tensor) -> ModuleUse | None:
    """The place where the last convolutional feature map comes out, or None.

    That is the last output [n, channels, positions …] from the last convolution on that has more
    than one position, if there is such: activation and pooling included, as in EBLL. A network
    whose only convolutions cut the image into patches counts as having none.
    """
    outputs = _outputs(backbone, inputs)
    convolved = [number for number, output in enumerate(outputs) if _convolves(output.of)]
    if not convolved:
        return None
    dims = len(outputs[convolved[-1]].shape)
    maps = [output for output in outputs[convolved[-1] :] if len(output.shape) == dims]
    wide = [output for output in maps if torch.Size(output.shape[2:]).numel() > 1]
    return (wide or maps)[-1].place


@contextmanager
def tap(backbone: nn.Module, place: ModuleUse) -> Iterator[list[Tensor]]:
    """A list that holds the output at `place`, flattened to [n, d], once the backbone has run."""
    tapped: list[Tensor] = []

    def note(output: Tensor) -> Tensor:
        tapped.append(output.flatten(1))
        return output

    with _at(backbone, place, note):
        yield tapped


@contextmanager
def changed(
    backbone: nn.Module, place: ModuleUse, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within the context the output at `place`, flattened to [n, d], goes through `change`."""
    with _at(backbone, place, lambda output: change(output.flatten(1)).view(output.shape)):
        yield


@contextmanager
def _at(backbone: nn.Module, place: ModuleUse, do: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context, for one pass, the output at `place` is what `do` makes of it."""
    uses = 0

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        nonlocal uses
        uses += 1
        return do(output) if uses == place.use + 1 else output

    handle = backbone.get_submodule(place.module).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _outputs(backbone: nn.Module, inputs: Tensor) -> list[ModuleOutput]:
    """The tensors that come out of the modules in one pass, in order."""
    outputs: list[ModuleOutput] = []
    names = {module: name for name, module in backbone.named_modules()}

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            uses = sum(earlier.of is module for earlier in outputs)
            outputs.append(
                ModuleOutput(ModuleUse(names[module], uses), module, tuple(output.shape))
            )

    with ExitStack() as stack:
        for module in backbone.modules():
            stack.callback(module.register_forward_hook(note).remove)
        stack.enter_context(borrowed(backbone))
        stack.enter_context(torch.no_grad())
        backbone(inputs)
    return outputs


def _convolves(module: nn.Module) -> bool:
    """Whether `module` is a convolution that mixes neighbours, not one that cuts patches."""
    if not isinstance(module, CONVOLUTIONS):
        return False
    return module.stride != module.kernel_size or set(module.kernel_size) == {1}
