"""From a file to a memory on a model that fits it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retain import files
from retain.errors import FileError, ModelError
from retain.memory.body import Memory
from retain.memory.ewc import EWC
from retain.memory.local_mas import LocalMAS
from retain.memory.mas import MAS
from retain.memory.si import SI
from retain.memory.state import State
from retain.outputs import OutputPicker
from retain.parameters import Patterns, Selection, fingerprint, unwrapped

KINDS: dict[str, type[Memory]] = {kind.__name__: kind for kind in (MAS, LocalMAS, EWC, SI)}

Tensors = dict[str, dict[str, Tensor]]  # kind -> name of the parameter -> tensor


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    output: OutputPicker | None = None,
    exclude: Patterns = None,
    strict: bool = True,
) -> Memory:
    """The memory that `save` wrote to `path`, of the same class and with all its settings.

    Args:
        path: a file that `save` wrote.
        model: the network that it is about, wrapped and compiled in any way.
        output: the function that was given as `output=`, which a file cannot hold. Without it the
            memory protects as before, but cannot observe.
        exclude: patterns of parameters to leave out, beside those that were left out before.
        strict: refuse a model with parameters that the file does not know; with False, these are
            free until something is observed for them.

    Raises:
        FileError: missing, truncated, foreign or from a newer version; or it does not match the
            model, with every missing, unexpected and misshapen name.
    """
    tensors, header = _grouped(path)
    inner, more = unwrapped(model), Selection.of(None, exclude).exclude
    try:
        memory, state, shapes = _from_header(header, tensors, inner, more)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path} has a damaged header: {error!r}.") from error
    _refuse_mismatch(path, shapes, memory, strict)
    _refuse_damage(path, shapes, tensors, memory.selection)
    memory._adopt(state, tensors, output, custom_output=bool(header["custom_output"]))
    return memory


def _grouped(path: str | os.PathLike[str]) -> tuple[Tensors, dict[str, Any]]:
    flat, header = files.read(path, "memory")
    tensors: Tensors = {}
    for key, tensor in flat.items():
        kind, _, name = key.partition("/")
        tensors.setdefault(kind, {})[name] = tensor
    return tensors, header


def _from_header(
    header: dict[str, Any], tensors: Tensors, model: nn.Module, exclude: tuple[str, ...]
) -> tuple[Memory, State, dict[str, tuple[int, ...]]]:
    kind = KINDS[header["method"]]
    settings = dict(header["settings"])
    include = settings.pop("include")
    settings["exclude"] = [*settings["exclude"], *exclude]
    if settings["dtype"] is not None:
        settings["dtype"] = getattr(torch, settings["dtype"])
    settings["device"] = _available(settings["device"])
    memory = kind(model, strength=header["strength"], **settings)
    if include is not None:  # afterwards: the names may be those that the model turns out to lack
        memory.selection = Selection.of(include, settings["exclude"])
    memory._routes.update(header["routes"])
    shapes = {name: tuple(shape) for name, shape in header["fingerprint"].items()}
    return memory, State.unpack(tensors, header), shapes


def _available(device: str | None) -> str | None:
    """The device that Ω was kept on, or None, with a warning, if this machine has none such."""
    if device is None:
        return None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        warnings.warn(
            f"The file says device={device!r}, which is not here; Ω and θ* stay with the weights.",
            stacklevel=4,
        )
        return None
    return device


def _refuse_mismatch(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    memory: Memory,
    strict: bool,
) -> None:
    """What the file knows, and what the model has, must be the same names and shapes."""
    picked = memory.selection
    theirs = {name: shape for name, shape in shapes.items() if picked.picks(name)}
    ours = fingerprint(memory.model, picked)
    missing = [f"{name} {ours[name]}" for name in ours if name not in theirs]
    unexpected = [f"{name} {theirs[name]}" for name in theirs if name not in ours]
    misshapen = [
        f"{name} {theirs[name]} in the file, {ours[name]} in the model"
        for name in theirs
        if name in ours and theirs[name] != ours[name]
    ]
    said = []
    if missing and strict:
        said.append(f"missing in the file: {', '.join(missing)}")
    if unexpected:
        said.append(f"unexpected, not in the model: {', '.join(unexpected)}")
    if misshapen:
        said.append(f"misshapen: {', '.join(misshapen)}")
    if said:
        raise FileError(
            f"{path} does not match the model; {'; '.join(said)}. Give the model that it was saved "
            "from, or leave these out with exclude=…; with strict=False, parameters missing in the "
            "file are free."
        )


def _refuse_damage(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Tensors,
    selection: Selection,
) -> None:
    """The tensors themselves must be those that the header tells of."""
    wrong = [
        f"{kind}/{name}"
        for kind, named in tensors.items()
        for name, tensor in named.items()
        if name and selection.picks(name) and tuple(tensor.shape) != shapes.get(name)
    ]
    wrong += [
        f"{kind}/{name}"
        for kind in tensors
        if kind.startswith("importance.")
        for name in tensors[kind].keys()
        ^ tensors.get(kind.replace("importance", "anchor"), {}).keys()
    ]
    if wrong:
        raise FileError(f"{path} is damaged: {', '.join(wrong)} is not as its header says.")
