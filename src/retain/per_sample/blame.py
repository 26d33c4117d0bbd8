"""Who is to blame when a sample's output is not its own: which module, and what it does."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from retain.errors import ModelError
from retain.per_sample.precision import Precision
from retain.per_sample.same import same
from retain.samples.batches import Batch, tensors_in
from retain.samples.containers import DESCEND, Path, rebuilt

# What a model raises that cannot take so few samples; an exported one asserts what it was made for.
BROKEN = (RuntimeError, ValueError, IndexError, AssertionError)
MIXES = (
    "mixes the samples of a batch: its output for one sample depends on the others",
    "Importance is defined per sample: replace what looks across the batch, or let it look at one "
    "sample at a time.",
)
SEEDS = 65  # chance that decides rarely shows itself in one of so many
FIXED = (
    "If it was made for batches of {} alone (torch.export, torch.jit.trace, a view of fixed "
    "sizes), make it for any number: torch.export.export(…, dynamic_shapes=…) with Dim.DYNAMIC for "
    "the dimension that counts samples. If this is a single sample, give it a dimension in front: "
    "x[None]."
)
TRAINS = (
    "is in train mode although the model was put in eval mode, and behaves as in training",
    "Put it in eval mode, or stop its train() from leaving it there.",
)
RANDOM = (
    "gives another output each time it is called: it draws random numbers even while it is "
    "evaluated",
    "Importance is of one function, not of chance: let it draw only where self.training is true "
    "(F.dropout(x, p, self.training)), and use the mean in place of a sample.",
)
KEEPS = (
    "gives another output each time it is called: it keeps state from one call to the next",
    "Make each call start afresh: reset that state at the start of forward(), or make it an input.",
)
OBSERVES = (
    "holds quantisation observers that move with every batch they see, so that outputs depend on "
    "the batch",
    "Freeze them: model.apply(torch.ao.quantization.disable_observer).",
)


@dataclass(frozen=True)
class Seen:
    """What went into a module, or came out of it, in the order of execution."""

    module: str
    around: str
    entering: bool
    tensors: tuple[Tensor, ...]


def raise_interaction(model: nn.Module, batch: Batch, precision: Precision) -> NoReturn:
    """Name the module with which it begins that outputs change with the company, or the call.

    Raises:
        ModelError: always.
    """
    first, broken = _trace(model, batch, seed=0)
    with suppress(Exception):  # something else in between; the model may make nothing of it
        _trace(model, another(batch), seed=0)
    again, _ = _trace(model, batch, seed=0)
    culprit = _first(first, [again], precision)
    if culprit is not None:
        _raise(model, culprit, OBSERVES if _observes(model, culprit) else KEEPS)
    for seed in range(1, SEEDS):
        other, _ = _trace(model, batch, seed=seed)
        culprit = _first(first, [other], precision)
        if culprit is not None:
            _raise(model, culprit, RANDOM)
    if batch.samples == 1:
        _raise(model, "", RANDOM)  # nothing else is left
    alone = []
    for k in range(batch.samples):
        seen, broken = _trace(model, batch.take(k, k + 1), seed=0)
        if broken is not None:
            _raise(model, broken, MIXES)  # it cannot even take one sample
        alone.append(seen)
    culprit = _first(first, alone, precision)
    if culprit is None:
        raise ModelError(
            "The model (outside of its modules, or by the dimension that counts samples) "
            f"{MIXES[0]}. Look at its forward(), or say batch_dim=... if samples are not counted "
            "first."
        )
    _raise(model, culprit, OBSERVES if _observes(model, culprit) else MIXES)


def another(batch: Batch) -> Batch:
    """The batch with other numbers in it, of the same kinds and shapes."""

    def change(_path: Path, part: object) -> object:
        if not isinstance(part, Tensor):
            return DESCEND
        if part.is_floating_point():
            return 1 - part
        return part.flip(part.ndim - 1) if part.ndim > 1 else part

    args, kwargs = rebuilt((batch.args, batch.kwargs), change)
    return replace(batch, args=args, kwargs=kwargs)


def raise_size(model: nn.Module, batch: Batch, part: Batch) -> NoReturn:
    """Raise for a model that took a batch but cannot take a part of it.

    Raises:
        ModelError: naming the module that failed.
    """
    _, broken = _trace(model, part, seed=0)
    what = f"fails with {part.samples} of the {batch.samples} samples of a batch"
    _raise(model, broken or "", (what, f"{MIXES[1]} {FIXED.format(batch.samples)}"))


def raise_padded(own: Tensor, alone: Tensor) -> NoReturn:
    """Raise for a sample whose output has more positions beside longer ones than it has alone.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        f"A sample's output {tuple(alone.shape)} is followed by {own.shape[1] - alone.shape[1]} "
        "further positions if longer samples are in its batch, and these would count. Mark them as "
        "padding with padding_mask=…, a function of the batch that returns bools [samples, "
        "positions], True where there is padding: with lengths, torch.arange(max(lengths)) >= "
        "torch.as_tensor(lengths)[:, None]."
    )


def _raise(model: nn.Module, culprit: str, fault: tuple[str, str]) -> NoReturn:
    module = model.get_submodule(culprit) if culprit else model
    if module.training and fault is not OBSERVES:
        fault = TRAINS
    what, remedy = fault
    name = culprit or type(model).__name__
    raise ModelError(f"Module '{name}' ({type(module).__name__}) {what}. {remedy}")


def _observes(model: nn.Module, culprit: str) -> bool:
    """Whether the module, or one in it, is an observer for quantisation, switched on."""
    library = sys.modules.get("torch.ao.quantization")
    if library is None:
        return False
    kinds = (library.FakeQuantizeBase, library.ObserverBase)
    module = model.get_submodule(culprit) if culprit else model
    return any(isinstance(part, kinds) for part in module.modules())


def _first(whole: list[Seen], parts: list[list[Seen]], precision: Precision) -> str | None:
    """The module with which a difference begins; None where there is none to be seen.

    What comes out of it differs although what went in did not; or, if what goes into a module
    differs, it began in the one around it. Rows that were sent elsewhere come before that.
    """
    found = [_numbered(part) for part in parts]
    moved: str | None = None
    for key, seen in _numbered(whole).items():
        here = seen.around if seen.entering else seen.module
        others = [part[key] for part in found if key in part]  # an expert may not be asked at all
        for index, tensor in enumerate(seen.tensors):
            pieces = [o.tensors[index] for o in others if index < len(o.tensors)]
            ways = _joined(pieces, tensor)
            if not ways:
                moved = here if moved is None else moved
            elif not any(same(way, tensor, precision) for way in ways):
                return here if moved is None else moved
    return moved


def _numbered(trace: list[Seen]) -> dict[tuple[str, bool, int], Seen]:
    """By module and direction, and which of several calls it was."""
    counts: Counter[tuple[str, bool]] = Counter()
    numbered = {}
    for seen in trace:
        key = (seen.module, seen.entering)
        numbered[seen.module, seen.entering, counts[key]] = seen
        counts[key] += 1
    return numbered


def _joined(parts: list[Tensor], together: Tensor) -> list[Tensor]:
    """Parts side by side or in turns, along dimensions that make their shapes fit."""
    if parts and all(part.shape == together.shape for part in parts):
        return [parts[0]]  # one call against another, or what all samples share
    ways = []
    for dim in range(together.ndim):
        if any(p.ndim != together.ndim for p in parts):
            continue
        sizes = [p.shape[dim] for p in parts]
        others = [[s for d, s in enumerate(p.shape) if d != dim] for p in [*parts, together]]
        if sum(sizes) == together.shape[dim] and all(o == others[0] for o in others):
            ways.append(torch.cat(parts, dim))
            if len(set(sizes)) == 1:
                ways.append(torch.stack(parts, dim + 1).flatten(dim, dim + 1))
    return ways


def _trace(model: nn.Module, batch: Batch, *, seed: int) -> tuple[list[Seen], str | None]:
    """Everything that goes into modules and comes out of them, with these random numbers.

    If the model cannot take the batch, also the innermost module that failed.
    """
    seen: list[Seen] = []
    running: list[str] = []

    def note(name: str, entering: bool, value: object) -> None:
        floating = (t.detach().clone() for t in tensors_in(value) if t.is_floating_point())
        around = running[-1] if running else ""
        seen.append(Seen(name, around, entering, tuple(floating)))

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            note(name, True, (args, kwargs))
            running.append(name)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, returned: Any) -> None:
            running.pop()
            note(name, False, returned)

        return hook

    modules = list(model.named_modules())
    hooks = [m.register_forward_pre_hook(enter(name), with_kwargs=True) for name, m in modules]
    hooks += [m.register_forward_hook(leave(name)) for name, m in modules]
    try:
        with torch.enable_grad(), _seeded(seed):
            batch.spared().call(model)
    except BROKEN:
        return seen, running[-1] if running else ""
    finally:
        for hook in hooks:
            hook.remove()
    return seen, None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The same random numbers for the same seed, from torch, NumPy and Python."""
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
