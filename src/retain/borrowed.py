"""Borrow a model, then give it back: modes, buffers, random state and flags as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import _VF, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import checkpoint


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Run with `model` in eval mode, eagerly and without checkpointing; then put everything back.

    Put back, also when an exception passes through: the mode of every module, the buffers (the
    same tensors, with the values they had), and the random state of Python, NumPy, the CPU and the
    CUDA devices that the model lives on. Gradients are never touched. Thawed for the pass: compiled
    code runs eagerly, recurrent layers run step by step, saved-tensor hooks (activation
    checkpointing, off-loading) do nothing, since the engine reads saved tensors itself, and
    `torch.inference_mode` is left.
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
        stack.enter_context(_same_random_state())
        stack.enter_context(eagerly())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_without_checkpointing())
        stack.enter_context(_recurrence_in_steps())
        try:
            model.eval()
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            for module, name, buffer, values in buffers:
                module._buffers[name] = buffer
                if buffer is not None and values is not None:
                    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                        buffer.copy_(values)


def eagerly() -> AbstractContextManager[Any]:
    """Run compiled code as it was written. Loads no compiler, which takes seconds, if none is."""
    compiling = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Put back the random state of Python and NumPy, from which data may be drawn on the way."""
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Keep activations: non-reentrant checkpointing is saved-tensor hooks, reentrant a Function."""

    def plainly(run: Any, _preserve_rng: Any, *args: Any) -> Any:
        return run(*args)

    def nothing(*_args: Any) -> None:
        pass

    with (
        _replaced(saved_tensors_hooks, "__enter__", nothing),
        _replaced(saved_tensors_hooks, "__exit__", nothing),
        _replaced(checkpoint.CheckpointFunction, "apply", plainly),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Another function under that name, which a class may also have inherited."""
    own = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def _recurrence_in_steps() -> Iterator[None]:
    """Recurrent layers by their steps.

    One fused operation hides them from the engine (oneDNN) or has no backward in eval mode (cuDNN).
    """

    def in_steps(fused: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            cudnn, onednn = torch.backends.cudnn.enabled, torch._C._get_mkldnn_enabled()
            try:
                torch.backends.cudnn.enabled = False
                torch._C._set_mkldnn_enabled(False)  # its public form warns where there is no GPU
                return fused(*args)
            finally:
                torch.backends.cudnn.enabled = cudnn
                torch._C._set_mkldnn_enabled(onednn)

        return run

    with ExitStack() as stack:
        for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            stack.enter_context(_replaced(_VF, name, in_steps(getattr(_VF, name))))
        yield
