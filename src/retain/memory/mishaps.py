"""What PyTorch's errors about devices, types and memory mean for whoever observes a batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from retain.errors import InputError, ModelError, OutOfMemoryError, RetainError
from retain.memory.running_sums import Running
from retain.per_sample.halving import shortage
from retain.samples.batches import tensors_in

# As PyTorch says it, here and there.
DEVICES = re.compile(
    r"same device|expected device|two devices|different device|from device|input.*weight.*backend"
    r"|out of meta tensor|on a meta tensor|(?:is|are) on (?:cpu|cuda|meta|mps|xpu)",
    re.I | re.S,
)
# As transformers says that neither of two inputs of a decoder was given.
DECODER = re.compile(r"input_ids.*inputs_embeds", re.S)
NO_KERNEL = re.compile(
    r"not implemented for|not supported for|could not run '\S+' with arguments|unsupported dtype"
    r"|does not support .*(?:float|half|complex|int|long|bool)",
    re.I | re.S,
)
TYPES = re.compile(
    r"same dtype|expected scalar type|expected .*dtype|(?:input type|bias type).*should be the same"
    r"|dtype.*(?:mismatch|do not match)|expected .* but (?:got|found) .*(?:float|half|double)",
    re.I | re.S,
)


def explained(error: Exception, model: nn.Module, raw: object) -> RetainError | None:
    """An error that says what to do in place of PyTorch's; None where there is no more to say.

    Args:
        error: what was raised while a batch was observed.
        model: the model.
        raw: the batch, as it was given.
    """
    said = str(error).strip()
    told = shortage(error)
    if told is not None:
        return OutOfMemoryError(
            f"It does not fit into memory ({told}). Nothing of it was counted. Give smaller "
            "batches, or observe on another device."
        )
    if not isinstance(error, (RuntimeError, NotImplementedError, TypeError, ValueError)):
        return None
    config = getattr(model, "config", None)
    if DECODER.search(said) and getattr(config, "is_encoder_decoder", False):
        return InputError(
            f"There may be nothing to decode ({_first(said)}). {type(model).__name__} has an "
            "encoder and a decoder: give decoder_input_ids, or labels, which it shifts and decodes."
        )
    if DEVICES.search(said):
        return _of_devices(said, model, raw)
    if NO_KERNEL.search(said):
        return ModelError(
            f"An operation cannot be computed in this type or on this device ({_first(said)}). The "
            f"weights are {_types(model.parameters())}, on {_devices(model.parameters())}. Observe "
            "a copy in another type, copy.deepcopy(model).float(), or on another device, and set "
            "memory.observed to what it observed."
        )
    if TYPES.search(said):
        return InputError(
            f"Types do not match ({_first(said)}). The weights are {_types(model.parameters())}, "
            f"the batch {_types(tensors_in(raw))}. Give batches in the type of the weights, or "
            "observe under torch.autocast."
        )
    return None


@contextmanager
def short_of_memory(running: Callable[[], Running | None]) -> Iterator[None]:
    """Say so if there is no memory for what stands beside the batches, and what is counted.

    Raises:
        OutOfMemoryError: there is not.
    """
    try:
        yield
    except RetainError:
        raise
    except Exception as error:
        told, counted = shortage(error), running()
        if told is None:
            raise
        raise OutOfMemoryError(
            f"What stands beside the batches does not fit into memory ({told}). "
            f"{counted.samples if counted else 0} samples are counted. Free some memory, leave "
            "parameters out with exclude=…, or observe on another device."
        ) from error


def _of_devices(said: str, model: nn.Module, raw: object) -> RetainError:
    batch = list(tensors_in(raw))
    if any(tensor.is_meta for tensor in batch):
        return InputError(
            "The batch holds tensors on the meta device, which have shapes and no numbers. Give "
            "batches of data."
        )
    home = next((p.device for p in model.parameters()), None)
    named = [*model.named_parameters(), *model.named_buffers()]
    elsewhere = [f"{name} ({tensor.device})" for name, tensor in named if tensor.device != home]
    if not elsewhere:
        return ModelError(
            f"Tensors on several devices met ({_first(said)}). The weights and the batch are on "
            f"{home}, so forward() or output=… makes tensors elsewhere: make them on the device of "
            "its input."
        )
    listed = ", ".join(elsewhere[:5]) + (f" and {len(elsewhere) - 5} more" * (len(elsewhere) > 5))
    return ModelError(
        f"Tensors on several devices met ({_first(said)}). Batches are put on {home}, where the "
        f"first weight is; elsewhere are {listed}. A model is observed on one device: put all of "
        f"it there, model.to('{home}'), or observe a copy that is on one."
    )


def _types(tensors: Iterable[Tensor]) -> str:
    floating = (t.dtype for t in tensors if t.is_floating_point() or t.is_complex())
    named = " and ".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(floating))
    return named or "of whole numbers"


def _devices(tensors: Iterable[Tensor]) -> str:
    found: dict[torch.device, None] = dict.fromkeys(tensor.device for tensor in tensors)
    return " and ".join(map(str, found))


def _first(said: str) -> str:
    """The first sentence of an error, which may go on for pages."""
    return re.split(r"(?<=[.!?])\s|\n", said)[0].rstrip(".!")[:300]
