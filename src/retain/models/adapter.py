"""Making inputs suit a network that was built for others: colour channels, and a smallest size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from retain.borrowed import borrowed
from retain.errors import ModelError

# Sides that networks are commonly built for, tried in this order.
SIDES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)


class Adapter(nn.Module):
    """Greyscale repeated to `channels`, and images enlarged to `size` by bilinear interpolation."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [n, channels, *size] of images [n, c, h, w]."""
        if inputs.shape[1] != self.channels:
            inputs = inputs.expand(-1, self.channels, -1, -1)
        if tuple(inputs.shape[2:]) != self.size:
            inputs = interpolate(inputs, size=self.size, mode="bilinear", align_corners=False)
        return inputs

    def extra_repr(self) -> str:
        """What it makes of an input."""
        return f"channels={self.channels}, size={self.size}"


def adapter_for(
    model: nn.Module,
    name: str,
    input_shape: tuple[int, ...],
    *,
    at_least: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, tuple[str, ...]]:
    """(what makes inputs of `input_shape` suit the model, one sentence on it if it does anything).

    The model is run on random inputs: as they are, then with three channels, then at one common
    side after another, until it takes them.

    Args:
        model: the network.
        name: what to call it.
        input_shape: of one input.
        at_least: the smallest side that is worth trying.
        dtype: of inputs; those of whole numbers are no images, and are taken as they are.

    Raises:
        ModelError: it takes none of them; the message says why it refused the first and the last.
    """
    refusals: list[str] = []
    shapes = _candidates(input_shape, at_least) if dtype.is_floating_point else [input_shape]
    for shape in shapes:
        refusal = _refusal(model, example(shape, dtype))
        if not refusal:
            return _adapter(name, input_shape, shape)
        refusals.append(f"{_shown(shape)}: {refusal}")
    if not dtype.is_floating_point:
        kind = str(dtype).removeprefix("torch.")
        raise ModelError(f"{name} does not accept inputs of type {kind}. It said for {refusals[0]}")
    raise ModelError(
        f"{name} does not accept inputs of shape {_shown(input_shape)}: not as they are, with "
        f"three channels, or enlarged. It said for {refusals[0]}"
        + (f"; and for {refusals[-1]}" if len(refusals) > 1 else "")
    )


def example(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Two inputs of that shape, the same every time: random, or 1 where they are whole numbers."""
    if not dtype.is_floating_point:
        return torch.ones(2, *shape, dtype=dtype)
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def _candidates(shape: tuple[int, ...], at_least: int) -> list[tuple[int, ...]]:
    if len(shape) != 3:
        return [shape]
    channels, height, width = shape
    own = [(height, width)] if min(height, width) >= at_least else []
    larger = [(side, side) for side in SIDES if side > max(height, width)]
    depths = (1, 3) if channels == 1 else (channels,)
    return [(depth, *size) for size in (*own, *larger) for depth in depths]


def _refusal(model: nn.Module, inputs: Tensor) -> str:
    """Why the model does not take such inputs; empty if it does."""
    like = next(model.parameters(), torch.empty(0))
    try:
        with borrowed(model), torch.no_grad():
            model(inputs.to(like.device))
    # A network may refuse a size in any way it likes: RuntimeError, ValueError, AssertionError …
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also one that would end the process
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return ""


def _adapter(
    name: str, given: tuple[int, ...], taken: tuple[int, ...]
) -> tuple[nn.Module, tuple[str, ...]]:
    if given == taken:
        return nn.Identity(), ()
    done = []
    if given[0] != taken[0]:
        done.append(f"greyscale is repeated to {taken[0]} channels")
    if given[1:] != taken[1:]:
        sizes = " to ".join("×".join(map(str, shape[1:])) for shape in (given, taken))
        done.append(f"images are enlarged from {sizes} (bilinear)")
    return Adapter(taken[0], (taken[1], taken[2])), (f"To suit {name}, {' and '.join(done)}.",)


def _shown(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
