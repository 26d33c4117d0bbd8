"""Borrow a model, then give it back: modes, buffers, random state and flags as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import checkpoint


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Run with `model` in eval mode, eagerly and without checkpointing; then put everything back.

    Put back, also when an exception passes through: the mode of every module, the buffers (the
    same tensors, with the values they had), and the random state of the CPU and of the devices
    that the model lives on. Gradients are never touched. Thawed for the pass: compiled code runs
    eagerly, and saved-tensor hooks (activation checkpointing, off-loading) do nothing, since the
    engine reads saved tensors itself.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modes
        for name, buffer in module._buffers.items()
    ]
    devices = {p.device for p in model.parameters()} | {torch.device("cpu")}
    accelerators = [device for device in devices if device.type == "cuda"]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=accelerators))
        stack.enter_context(_eagerly())
        stack.enter_context(_without_checkpointing())
        try:
            model.eval()
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            with torch.no_grad():
                for module, name, buffer, values in buffers:
                    module._buffers[name] = buffer
                    if buffer is not None and values is not None:
                        buffer.copy_(values)


def _eagerly() -> Any:
    return torch.compiler.set_stance("force_eager")


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Keep activations: non-reentrant checkpointing is saved-tensor hooks, reentrant a Function."""

    def plainly(run: Any, _preserve_rng: Any, *args: Any) -> Any:
        return run(*args)

    with (
        mock.patch.object(saved_tensors_hooks, "__enter__", lambda _self: None),
        mock.patch.object(saved_tensors_hooks, "__exit__", lambda _self, *_exc: None),
        mock.patch.object(checkpoint.CheckpointFunction, "apply", plainly),
    ):
        yield
