"""An adapter that was saved alone, merged into the weights that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from retain.errors import FileError
from retain.extras import needs
from retain.integrations.peft.adapted import base_name

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."
LISTED = 20
CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def merged_from(base: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """`base`, with the adapter that PEFT's `save_pretrained` put into `folder` merged into it.

    The network itself is not needed: PEFT merges into layers that are made around the weights.

    Raises:
        FileError: no adapter is there, one that cannot be read, or one of another model; what it
            has that the base does not is listed.
        MissingExtraError: PEFT is not installed.
    """
    weights = _read(folder)
    peft = needs("peft", "trainers")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise FileError(f"{folder / CONFIG} cannot be read: {error}") from error
    moved = {base_name(name): name for name in weights}
    missing = [_place(name) for name in moved if f"{_place(name)}.weight" not in base]
    if missing:
        raise FileError(
            f"The adapter in {folder} is not of these weights: they have no "
            f"{', '.join(sorted(set(missing))[:LISTED])}."
        )
    embedded = {_place(base_name(n)) for n in weights if "lora_embedding_" in n}
    turned = bool(getattr(config, "fan_in_fan_out", False))
    skeleton = _layers(base, embedded, turned=turned)
    config.task_type = None  # which would ask for a network of that kind
    config.inference_mode = True
    try:
        merged = peft.PeftModel.from_pretrained(skeleton, str(folder), config=config)
        state: dict[str, Tensor] = merged.merge_and_unload().state_dict()
    except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise FileError(f"The adapter in {folder} cannot be merged: {error}") from error
    return state


def _read(folder: Path) -> dict[str, Tensor]:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise FileError(
            f"{folder} is a folder without {CONFIG} and {WEIGHTS}. Give a file of weights, or a "
            "folder that save_pretrained() wrote, of a model or of PEFT's adapter."
        )
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise FileError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def _place(name: str) -> str:
    """The module that a tensor of the adapter belongs to."""
    before, adapters, _ = name.partition(".lora_")
    return before if adapters else name.rpartition(".")[0]


def _layers(base: Mapping[str, Tensor], embedded: set[str], *, turned: bool) -> nn.Module:
    """Modules of the names in `base` with its weights, of such kinds as can be adapted."""
    root = nn.Module()
    for name, tensor in base.items():
        *path, last = name.split(".")
        here: Any = root
        for depth, part in enumerate(path, 1):
            inside = here._modules.get(part)
            if inside is None:
                at = ".".join(path[:depth])
                weight = base.get(f"{at}.weight")
                inside = _layer(weight, at in embedded, turned=turned)
                here.add_module(part, inside)
            here = inside
        if tensor.is_floating_point():
            here.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))
        else:
            here.register_buffer(last, tensor.clone())
    return root


def _layer(weight: Tensor | None, embeds: bool, *, turned: bool) -> nn.Module:
    """A layer for a weight of this shape, on no device; its weights are put in by name."""
    if weight is None or weight.ndim < 2:
        return nn.Module()
    outputs, inputs = weight.shape[:2]
    if weight.ndim == 2:
        if embeds:
            return nn.Embedding(outputs, inputs, device="meta")
        if turned:
            conv1d: Any = needs("transformers.pytorch_utils", "trainers").Conv1D
            return cast("nn.Module", conv1d(inputs, outputs))  # which is kept as [in, out]
        return nn.Linear(inputs, outputs, bias=False, device="meta")
    size = tuple(weight.shape[2:])
    kind: Any = CONVOLUTIONS[weight.ndim]
    return kind(inputs, outputs, size, bias=False, device="meta")  # type: ignore[no-any-return]
