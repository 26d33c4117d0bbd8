"""A memory as plain data beside its tensors, and from both to a memory on a model that fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retain import arguments, files
from retain.errors import InputError, ModelError, RetainError
from retain.importance import is_positive
from retain.memory.consolidated import Consolidated
from retain.memory.file_header import checked
from retain.memory.growth import has_grown
from retain.memory.holder import Holder
from retain.memory.state import OBSERVED_AT, State, Tensors
from retain.parameters import Selection, fingerprint, is_adapters
from retain.samples.outputs import OutputPicker
from retain.saying import warn

HolderT = TypeVar("HolderT", bound=Holder)
Refusal = Callable[[str], RetainError]  # from what is wrong to the error that says so


def described(memory: Holder) -> dict[str, Any]:
    """What is to be known beside what it remembers, as JSON can hold it."""
    settings = {name: getattr(memory, at) for name, at in memory._arguments.items()}
    known = {n: o.shape for term in memory._state.terms for n, o in term.importance.items()}
    shapes = {**fingerprint(memory.model, memory.selection), **known}
    return {
        "method": type(memory).__name__,
        "strength": memory.strength,
        "settings": {
            "include": None if memory.include is None else list(memory.include),
            "exclude": list(memory.exclude),
            **memory.storage.settings(),
            **settings,
        },
        "custom_output": memory.output is not None or memory._output_is_lost,
        "routes": dict(memory._routes),
        "fingerprint": {name: list(shape) for name, shape in shapes.items()},
    }


def split(state: object, kind: type[Holder]) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and header in what `state_dict()` of that kind of memory returned.

    Raises:
        InputError: it is something else, or newer than this version.
    """
    header = dict(state) if isinstance(state, Mapping) else {}
    tensors, method = header.pop("tensors", None), header.get("method")
    plain = isinstance(tensors, Mapping) and all(
        isinstance(named, Mapping) and all(isinstance(t, Tensor) for t in named.values())
        for named in tensors.values()
    )
    if not plain or method != kind.__name__:
        what = f"the state of {method!r}" if plain else f"a {type(state).__name__}"
        raise InputError(
            f"load_state_dict got {what}; expected what state_dict() of {kind.__name__} returns."
        )
    version = header.get("format")
    if not isinstance(version, int) or version > files.VERSION:
        raise InputError(
            f"The state has format {version!r}; this version of retain reads up to "
            f"{files.VERSION}. Upgrade retain."
        )
    return {str(group): dict(named) for group, named in tensors.items()}, header


@contextmanager
def remembering(
    memory: Holder,
    tensors: Mapping[str, Mapping[str, Tensor]],
    header: dict[str, Any],
    devices: Mapping[str, torch.device],
) -> Iterator[None]:
    """Within it the memory remembers what was `split`; as before, if it ends with an error.

    For a model in which parameters are, but not under the names that the memory's own model has:
    nothing is compared, and whoever enters sees to it that all fits.

    Args:
        memory: whose Ω, θ* and λ are replaced.
        tensors: as `split` gave them.
        header: the same.
        devices: name -> where the parameter is; what is not named is left out.
    """
    before = memory._state, memory.strength
    new = State.unpack(tensors, header).placed(devices, memory.storage.place)
    memory._state, memory.strength = new, float(header["strength"])
    try:
        yield
    except BaseException:
        memory._state, memory.strength = before
        raise


def restored(
    kind: type[HolderT],
    model: nn.Module,
    tensors: Mapping[str, Mapping[str, Tensor]],
    header: dict[str, Any],
    *,
    refusal: Refusal,
    output: OutputPicker | None = None,
    exclude: tuple[str, ...] = (),
    strict: bool = True,
    offload: str | os.PathLike[str] | None = None,
) -> HolderT:
    """A memory of `model` that remembers what `header` and `tensors` (kind -> name -> tensor) tell.

    Args:
        kind: the class that the header names.
        model: the network, without wrappers.
        tensors: as `State.pack` and the memory's own `_more_tensors` gave them.
        header: as the memory's `_header` gave it.
        refusal: makes the error to raise; what it is given is the rest of a sentence that begins
            with where all this came from.
        output: the function that picks the output, if there is one.
        exclude: patterns to leave out, beside those that were left out before.
        strict: refuse a model with parameters that the header does not know.
        offload: the folder where Ω and θ* are kept from here on.

    Raises:
        ModelError: the model has nothing to protect.
        RetainError: what `refusal` makes, with every missing, unexpected, misshapen and damaged
            name.
    """
    try:
        fields = {**checked(header), "offload": offload}
        memory, state = _from_header(kind, model, tensors, fields, exclude)
        shapes = {name: tuple(shape) for name, shape in header["fingerprint"].items()}
        custom_output = bool(header["custom_output"])
        misfits = _misfits(shapes, memory, state.terms, strict)
        damaged = [] if misfits else _damaged(shapes, tensors, memory)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = str(error) if type(error) is ValueError else repr(error)
        raise refusal(f"has a damaged header: {said}.") from error
    if misfits:
        raise refusal(
            f"does not match the model; {'; '.join(misfits)}. Give the model that it was saved "
            "from, or leave these out with exclude=…; with strict=False, parameters that are "
            f"missing there are free.{_of_adapters(model)}"
        )
    if damaged:
        raise refusal(f"is damaged: {', '.join(damaged)} is not as its header says.")
    try:
        memory._remember(state, tensors, output, custom_output=custom_output)
    except (KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, RetainError):
            raise
        raise refusal(f"is damaged: {error!r}.") from error
    return memory


def _of_adapters(model: nn.Module) -> str:
    if not any(is_adapters(name) for name, _p in model.named_parameters()):
        return ""
    return (
        " This model has adapters: to read what was saved before they were added, use "
        "LoraPenalty(retain.MAS(model), model).load(path)."
    )


def _from_header(
    kind: type[HolderT],
    model: nn.Module,
    tensors: Mapping[str, Mapping[str, Tensor]],
    header: dict[str, Any],
    exclude: tuple[str, ...],
) -> tuple[HolderT, State]:
    settings = dict(header["settings"])
    include = settings.pop("include")
    settings["exclude"] = [*settings["exclude"], *exclude]
    if settings["dtype"] is not None:
        settings["dtype"] = getattr(torch, settings["dtype"])
    settings["device"] = _available(settings["device"])
    memory = kind(model, strength=header["strength"], offload=header["offload"], **settings)
    if include is not None:  # afterwards: the names may be those that the model turns out to lack
        memory.selection = Selection.of(include, settings["exclude"])
    memory._routes.update(header["routes"])
    return memory, State.unpack(tensors, header)


def _available(device: str | None) -> str | None:
    """The device that Ω was kept on, or None, with a warning, if this machine has none such."""
    if device is None:
        return None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        warn(
            f"It was kept with device={device!r}, which is not available here; Ω and θ* are kept "
            "with the weights."
        )
        return None
    return device


def _misfits(
    shapes: Mapping[str, tuple[int, ...]],
    memory: Holder,
    terms: Sequence[Consolidated],
    strict: bool,
) -> list[str]:
    """What is known there, and what the model has, must be the same names and shapes.

    Where the model has more, and the old part is its beginning, that is held.
    """
    picked = memory.selection
    theirs = {name: shape for name, shape in shapes.items() if picked.picks(name)}
    ours = fingerprint(memory.model, picked)
    missing = [f"{name} {ours[name]}" for name in ours if name not in theirs]
    unexpected = [f"{name} {theirs[name]}" for name in theirs if name not in ours]
    parameters = picked.matching(memory.model)
    anchor = {name: star for term in terms for name, star in term.anchor.items()}
    misshapen = [
        f"{name} {theirs[name]} there, {ours[name]} in the model"
        for name in theirs
        if name in ours
        and theirs[name] != ours[name]
        and not (name in anchor and has_grown(parameters[name], anchor[name]))
    ]
    said = []
    if missing and strict:
        said.append(f"missing there: {', '.join(missing)}")
    if unexpected:
        said.append(f"unexpected, not in the model: {', '.join(unexpected)}")
    if misshapen:
        said.append(f"misshapen: {', '.join(misshapen)}")
    return said


def _damaged(
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Mapping[str, Tensor]],
    memory: Holder,
) -> list[str]:
    """The tensors that are not those that the header tells of."""

    def unlike(kind: str, name: str, tensor: Tensor) -> bool:
        if kind == OBSERVED_AT:
            return bool(arguments.unusable(tensor)) or tensor.ndim != 1
        if arguments.unusable(tensor) or tuple(tensor.shape) != shapes.get(name):
            return True
        at_least = kind.startswith("importance.") or (kind == "observed" and not memory.signed)
        values = kind.startswith(("importance.", "anchor.")) or at_least
        return values and not (tensor.isfinite().all() and (not at_least or is_positive(tensor)))

    wrong = [
        f"{kind}/{name}"
        for kind, named in tensors.items()
        for name, tensor in named.items()
        if name and memory.selection.picks(name) and unlike(kind, name, tensor)
    ]
    wrong += [
        f"{kind}/{name}"
        for kind in tensors
        if kind.startswith("importance.")
        for name in tensors[kind].keys()
        ^ tensors.get(kind.replace("importance", "anchor"), {}).keys()
    ]
    return wrong
