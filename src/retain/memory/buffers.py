"""Buffers of other layers that follow the data from step to step, whatever they are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retain.memory.movement import can_be_read, elements, spread, version
from retain.statistics import layers_with_statistics

OFTEN = 2  # moves that are no coincidence; a checkpoint that is loaded is one
COMPARED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OF_WEIGHTS = ("_u", "_v")  # what spectral norm keeps, which follows the weights


class _SeenBuffer(NamedTuple):
    """A buffer as it was."""

    buffer: Tensor
    version: int
    values: Tensor


class MovingBuffers:
    """Looks at the buffers of a model, and tells which have moved again and again.

    Of interest is what a checkpoint holds, is floating, and has more than one element: no caches,
    no counters. Layers that are known to keep statistics are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen: dict[str, _SeenBuffer] = {}
        self._moves: dict[str, int] = {}
        known = {id(layer) for layer in layers_with_statistics(model).values()}
        self._layers = [
            (name or type(model).__name__, layer)
            for name, layer in model.named_modules()
            if id(layer) not in known and any(True for _ in _buffers(layer))
        ]
        self.look()

    def look(self) -> list[str]:
        """Names of the layers whose buffers have moved often enough by now."""
        found = []
        for layer_name, layer in self._layers:
            for name, buffer in _buffers(layer):
                key = f"{layer_name}.{name}"
                seen = self._seen.get(key)
                if seen is not None and (seen.buffer is buffer and seen.version == version(buffer)):
                    continue
                now = elements(buffer, spread(buffer))
                self._seen[key] = _SeenBuffer(buffer, version(buffer), now)
                if seen is not None and not _same(seen.values, now):
                    self._moves[key] = self._moves.get(key, 0) + 1
                    if self._moves[key] >= OFTEN:
                        found.append(layer_name)
        return list(dict.fromkeys(found))


def _buffers(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in layer.named_buffers(recurse=False):
        passing = name in layer._non_persistent_buffers_set or name.endswith(OF_WEIGHTS)
        if not passing and can_be_read(buffer) and buffer.dtype in COMPARED and buffer.numel() > 1:
            yield name, buffer


def _same(before: Tensor, now: Tensor) -> bool:
    alike = before.shape == now.shape and before.device == now.device and before.dtype == now.dtype
    return not alike or torch.equal(before, now)
