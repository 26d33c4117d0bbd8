"""From a file to a memory on a model that fits it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retain import arguments, files
from retain.counterparts import plain_names
from retain.errors import FileError
from retain.header import Fields
from retain.importance import Importance, not_importance
from retain.memory.body import Memory
from retain.memory.compact import KIND, expanded, fingerprints, memory_of
from retain.memory.ewc import EWC
from retain.memory.file_header import checked
from retain.memory.local_mas import LocalMAS
from retain.memory.mas import MAS
from retain.memory.plain_data import restored
from retain.memory.si import SI
from retain.memory.state import State, grouped
from retain.parameters import Patterns, Selection, unwrapped
from retain.samples.outputs import OutputPicker

KINDS: dict[str, type[Memory]] = {kind.__name__: kind for kind in (MAS, LocalMAS, EWC, SI)}


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    output: OutputPicker | None = None,
    exclude: Patterns = None,
    strict: bool = True,
    offload: str | os.PathLike[str] | None = None,
) -> Memory:
    """The memory that `save` wrote to `path`, of the same class and with all its settings.

    Of a passport (`retain.passports`) it is a MAS whose θ* are the weights of `model`, which must
    be those that the passport was made of.

    Args:
        path: a file that `save` wrote, or a passport.
        model: the network that it is about, wrapped and compiled in any way.
        output: the function that was given as `output=`, which a file cannot hold. Without it the
            memory protects as before, but cannot observe.
        exclude: patterns of parameters to leave out, beside those that were left out before.
        strict: refuse a model with parameters that the file does not know; with False, these are
            free until something is observed for them.
        offload: leave Ω and θ* on disk, in the file itself, and read them at each step; what is
            consolidated later goes into this folder.

    Raises:
        FileError: missing, truncated, foreign or from a newer version; or it does not match the
            model, with every missing, unexpected and misshapen name.

    Examples:
        >>> import torch, retain
        >>> model = torch.nn.Linear(4, 2)
        >>> retain.MAS(model).observe(torch.randn(8, 4)).consolidate().save("memory.safetensors")
        >>> memory = retain.load("memory.safetensors", model)
        >>> type(memory).__name__, memory.tasks, memory.strength
        ('MAS', 1, 1.0)
    """
    arguments.function("output", output)
    arguments.flag("strict", strict)
    inner, left_out = unwrapped(model), Selection.of(None, exclude).exclude
    flat, header = files.read(path, "memory", KIND)
    if header["kind"] == KIND:
        refused = lambda said: FileError(f"{path} {said}")  # noqa: E731
        memory = memory_of(inner, flat, header, refused, offload)
        memory.output = output
        memory.exclude = exclude
        return memory
    method = header.get("method")
    if not isinstance(method, str) or method not in KINDS:
        raise FileError(f"{path} has a damaged header: it is of no known method ({method!r}).")
    return restored(
        KINDS[method],
        inner,
        grouped(flat),
        header,
        refusal=lambda said: FileError(f"{path} {said}"),
        output=output,
        exclude=left_out,
        strict=strict,
        offload=offload,
    )


def read_importance(path: str | os.PathLike[str]) -> tuple[str, Importance]:
    """What a file is, in a few words, and the Ω in it, whatever kind of file of ours it is.

    No model is needed. Of a memory it is the consolidated Ω over all tasks.

    Raises:
        FileError: missing, truncated, damaged, foreign or from a newer version.
    """
    flat, header = files.read(path, "memory", KIND, "importance")
    if header["kind"] == "importance":
        omega = Importance.of_file(path, flat, header)
        return str(omega), omega
    try:
        if header["kind"] == KIND:
            fields = Fields(header)
            shapes, routes = fields.shapes("shapes"), fields.named_texts("routes")
            samples, name = fields.count("samples"), fields.text("name")
            fields.finish()
            return f"passport of {name}", Importance(expanded(flat, shapes), samples, routes)
        fields_of = checked(header)
        total = Importance({}, 0)
        for term in State.unpack(grouped(flat), fields_of).terms:  # EWC keeps a term per task
            bad = not_importance(term.importance)
            if bad:
                raise ValueError(bad)
            total = total + Importance(term.omegas(), 0)
    except (ValueError, KeyError) as error:
        raise FileError(f"{path} is damaged: {error}.") from error
    said = f"{fields_of['method']}, strength {fields_of['strength']:g}, {fields_of['tasks']} tasks"
    return said, Importance(total, fields_of["samples"], fields_of["routes"])


def other_weights(path: str | os.PathLike[str], weights: Mapping[str, Tensor]) -> list[str]:
    """Names of those of `weights` that are not what the file was made on.

    A memory knows them by θ*, a passport by their hashes; an Ω alone says nothing of them.

    Raises:
        FileError: missing, truncated, damaged, foreign or from a newer version.
    """
    flat, header = files.read(path, "memory", KIND, "importance")
    try:
        if header["kind"] == KIND:
            marks = Fields(header).named_texts("weights")
            names = plain_names(weights, marks)
            here = {n: weights[names[n]] for n in names if n in marks}
            return [n for n, mark in fingerprints(here).items() if mark != marks[n]]
        if header["kind"] == "importance":
            return []
        terms = State.unpack(grouped(flat), checked(header)).terms
    except (ValueError, KeyError) as error:
        raise FileError(f"{path} is damaged: {error}.") from error
    return apart(weights, {name: star for term in terms for name, star in term.anchor.items()})


def apart(weights: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> list[str]:
    """Names of what is in both, and not equal up to the rounding of the coarser type."""
    known = {plain: weights[name] for plain, name in plain_names(weights, anchor).items()}
    both = ((n, known[n].to(star.device), star) for n, star in anchor.items() if n in known)
    return [n for n, weight, star in both if not _near(weight, star)]


def _near(one: Tensor, other: Tensor) -> bool:
    coarse = max(torch.finfo(one.dtype).eps, torch.finfo(other.dtype).eps)
    return bool((one.double() - other.double()).norm() <= coarse * other.double().norm())
