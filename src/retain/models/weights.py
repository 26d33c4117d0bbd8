"""Weights from a file into a model: all that does not fit is listed, nothing is half loaded."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from retain import arguments
from retain.errors import FileError

# Where training scripts put the weights beside other things, and what wrappers put before names.
WRAPPED_IN = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
LISTED = 20


def load_weights(model: nn.Module, path: Path, *, head: str | None = None) -> tuple[str, ...]:
    """Load the weights in `path` into `model`; returns what is worth knowing, a sentence each.

    Args:
        model: whose weights are set.
        path: safetensors, or a torch file of tensors.
        head: the name of its head, which is not loaded since heads are made anew for each task.

    Raises:
        FileError: the file cannot be read, or does not fit; the model is left as it was.
    """
    given = _of_backbone(read_state(path), model)
    own = model.state_dict()
    notes = _head_note(given, own, head, path)
    of_head = {f"{head}.weight", f"{head}.bias"} if head is not None else set()
    given = {name: tensor for name, tensor in given.items() if name not in of_head}
    own = {name: tensor for name, tensor in own.items() if name not in of_head}
    problems = _differences(given, own)
    if problems:
        raise FileError(f"The weights in {path} do not fit the model:\n" + "\n".join(problems))
    model.load_state_dict(given, strict=False)
    return notes


def read_weights(path: Path) -> Any:
    """What a file of weights holds; nothing in it is ever run.

    Raises:
        FileError: missing, unreadable, or more than tensors.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else arguments.absent(path)
        raise FileError(
            f"The file of weights {path} {what}. Give a safetensors or torch file, or "
            '"default" for the weights that torchvision or timm offers for the model.'
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} is not a file of weights alone, and is not loaded, since that could run code "
            "in it. Where it comes from, save the weights only: torch.save(model.state_dict(), …) "
            f"or safetensors. (torch: {str(error).strip().splitlines()[0]})"
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise FileError(
            f"{path} is not a readable file of weights (cut off, or another format): {error}"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of weights, by name.

    Raises:
        FileError: the file cannot be read, or holds something else.
    """
    return _unwrapped(read_weights(path), path)


def _unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, without what a training script or a wrapper put around them."""
    for key in WRAPPED_IN:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        raise FileError(f"{path} holds a {type(loaded).__name__}; expected tensors by name.")
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others or not loaded:
        raise FileError(
            f"{path} holds no weights by name"
            + (f"; {', '.join(others[:LISTED])} are no tensors." if others else ": it is empty.")
        )
    given = {str(name): tensor for name, tensor in loaded.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in given):
            given = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    return given


def _of_backbone(given: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the backbone, if they are those of a whole `TaskNetwork`."""
    whole = all(name.startswith(("backbone.", "heads.")) for name in given)
    if not whole or hasattr(model, "backbone"):
        return given
    return {
        name.removeprefix("backbone."): tensor
        for name, tensor in given.items()
        if name.startswith("backbone.")
    }


def _head_note(
    given: dict[str, Tensor], own: dict[str, Tensor], head: str | None, path: Path
) -> tuple[str, ...]:
    name = f"{head}.weight"
    if name not in own or (name in given and given[name].shape == own[name].shape):
        return ()
    found = f"one for {len(given[name])} classes" if name in given else "none"
    return (
        f"The model has a head for {len(own[name])} outputs, {path.name} {found}; it is ignored, "
        "since a head is made for each task.",
    )


def _differences(given: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Everything that is missing, unexpected or misshapen, a line per kind."""
    # Older files lack the counter of batches, which no computation uses.
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    misshapen = [
        f"{name} (file {tuple(given[name].shape)}, model {tuple(own[name].shape)})"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    return [
        f"  {kind} ({len(names)}): {', '.join(names[:LISTED])}{' …' * (len(names) > LISTED)}"
        for kind, names in kinds.items()
        if names
    ]
