"""Weights from a file into a model: all that does not fit is listed, nothing is half loaded."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retain import files, readable
from retain.counterparts import WRAPPED_IN
from retain.errors import FileError
from retain.header import shown
from retain.models.checkpoint_folder import is_checkpoint, read_checkpoint
from retain.parameters import is_finite

# What wrappers put before names.
PREFIXES = ("module.", "_orig_mod.")
LISTED = 20
WHOLE = (
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip


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
    if is_checkpoint(path):
        return read_checkpoint(path, read_weights)
    if why := readable.why_not(path):
        raise FileError(
            f"The file of weights {path} {why}. Give a safetensors or torch file, a folder that "
            "save_pretrained() wrote, or "
            '"default" for the weights that torchvision or timm offers for the model.'
        )
    readable.refuse_holes(path)
    _refuse_damaged_archive(path)
    try:
        if path.suffix == ".safetensors":
            return files.read_weights(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} is not a file of weights alone, and is not loaded, because that could run "
            "code in it. Where it was made, save only the weights: torch.save(model.state_dict(), "
            f"…) or safetensors.{_objects(error)}"
        ) from error
    except FileError:
        raise
    # torch raises nearly anything on a damaged file: RuntimeError, KeyError, AttributeError …
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        raise FileError(
            f"{path} is not a readable file of weights (cut off, or another format): {said}"
        ) from error


def _objects(error: pickle.UnpicklingError) -> str:
    """What else it holds, if torch says so: a whole model, or something of numpy's."""
    named = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    return f" (It holds objects of {shown(named[1])}.)" if named else ""


def _refuse_damaged_archive(path: Path) -> None:
    """A file of torch is an archive, not compressed, with checksums; torch looks at neither."""
    damaged = None
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            held = sum(entry.file_size for entry in archive.infolist())
            if held <= path.stat().st_size:
                damaged = archive.testzip()
    except Exception as error:  # zipfile raises nearly anything, too
        raise FileError(f"{path} is damaged, or cut off: {error}. Copy it again.") from None
    if damaged is not None:
        raise FileError(
            f"{path} is damaged: the checksum of {shown(damaged)} in it does not match its "
            "content. Copy it again."
        )
    if held > path.stat().st_size:
        raise FileError(
            f"{path} is not a file of weights that torch wrote: it is compressed, and "
            f"{held / 1e9:,.3g} GB would come out of {path.stat().st_size / 1e9:,.3g} GB. Unpack "
            "it yourself if you trust its source."
        )


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
    wrong = [
        f"{name if isinstance(name, str) else shown(name)} {why}"
        for name, value in loaded.items()
        if (why := _no_weight(name, value))
    ]
    if wrong or not loaded:
        listed = ", ".join(wrong[:LISTED]) + " …" * (len(wrong) > LISTED)
        said = f"; {listed}." if wrong else ": it is empty."
        raise FileError(f"{path} holds no weights by name{said}")
    given = dict(loaded)
    readable.refuse_too_much(path, given.values())
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in given)), ""):
        given = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    return given


def _no_weight(name: object, value: object) -> str:
    """What keeps it from being a weight that has a name; "" where nothing does."""
    if not isinstance(name, str):
        return "is no name"
    if not isinstance(value, Tensor):
        return "is no tensor"
    if value.is_nested or value.layout is not torch.strided or value.is_quantized:
        return "is not dense"
    if not (value.is_floating_point() or value.is_complex() or value.dtype in WHOLE):
        return "holds no numbers"
    return "is on the meta device, without numbers" if value.is_meta else ""


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
    alike = [name for name in own if name in given and given[name].shape == own[name].shape]
    of_another_type = [
        f"{name} (file {_type(given[name])}, model {_type(own[name])})"
        for name in alike
        if _kind(given[name]) != _kind(own[name])
    ]
    not_finite = [
        name
        for name in alike
        if _kind(given[name]) == "real" and not is_finite(given[name].to(own[name].dtype))
    ]
    kinds = {
        "missing": missing,
        "unexpected": unexpected,
        "misshapen": misshapen,
        "of another type": of_another_type,
        "NaN or infinite": not_finite,
    }
    return [
        f"  {kind} ({len(names)}): {', '.join(names[:LISTED])}{' …' * (len(names) > LISTED)}"
        for kind, names in kinds.items()
        if names
    ]


def _kind(tensor: Tensor) -> str:
    """What copying it into another type must not change: a weight has no fraction to lose."""
    return "real" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
