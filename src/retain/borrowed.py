"""Borrow a model, then give it back: modes, buffers, gradients and random state as they were.

Several threads may borrow at once, the same model or others: whoever leaves last gives back what
the first had found. What has to be replaced in torch meanwhile, for want of a switch, is so for the
threads that borrow; all others go straight through to what was there.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import _VF, Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from retain.errors import StateError
from retain.interrupts import uninterrupted

_giving = threading.Lock()  # held while anything is taken or given back


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Run with `model` in eval mode, eagerly and without checkpointing; then put everything back.

    Put back, also when an exception passes through: the mode of every module, the buffers (the
    same tensors, with the values they had), the gradients (which are None meanwhile, so that a
    backward pass that the model runs itself cannot add to them), and the random state of Python,
    NumPy, the CPU and the CUDA devices that the model lives on. Thawed for the pass: compiled code
    runs eagerly, recurrent layers run step by step, saved-tensor hooks (activation checkpointing,
    off-loading) do nothing, since the engine reads saved tensors itself, and
    `torch.inference_mode` is left.

    Raises:
        StateError: another thread put the model into training mode meanwhile. Its calls of a model
            that was in training mode are refused, too: they would have run in eval mode.
    """
    stack = ExitStack()
    try:
        with uninterrupted():
            stack.enter_context(same_random_state(model))
            stack.enter_context(eagerly())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(_thawed())
            stack.enter_context(_in_eval_mode(model))
        yield
    finally:
        try:
            with uninterrupted():
                stack.__exit__(*sys.exc_info())
        finally:
            stack.close()  # what is left, if Ctrl-C came before it could wait


def eagerly() -> AbstractContextManager[Any]:
    """Run compiled code as it was written. Loads no compiler, which takes seconds, if none is."""
    return _eager if "torch._dynamo" in sys.modules else nullcontext()


def borrowing() -> bool:
    """Whether this thread has borrowed a model: its calls are the library's, then."""
    return getattr(_here, "borrowing", 0) > 0


# ---- what is found, and who gives it back ----


@dataclass(frozen=True)
class _Thing:
    """Something that a borrower may change.

    Attributes:
        key: which thing it is, whoever borrows it.
        found: how it was.
        put: makes it so again.
    """

    key: object
    found: Any
    put: Callable[[Any], None]


_found: dict[object, list[tuple[object, Any]]] = {}  # key of a thing: borrowers, what they found


def _take(things: list[_Thing], borrower: object) -> None:
    for thing in things:
        _found.setdefault(thing.key, []).append((borrower, thing.found))


def _give_back(things: list[_Thing], borrower: object) -> None:
    """Put back what this borrower found, or, where another came later, hand it on to that one.

    A borrower inside of another is the later one and leaves first. One that leaves before a later
    one is another thread's; what the later one found is what the first had made of it.
    """
    for thing in things:
        line = _found[thing.key]
        place = next(i for i, (who, _) in enumerate(line) if who is borrower)
        _, found = line.pop(place)
        if place < len(line):
            line[place] = line[place][0], found
        else:
            thing.put(found)
        if not line:
            del _found[thing.key]


@contextmanager
def same_random_state(model: nn.Module) -> Iterator[None]:
    """Put back the random state of Python, NumPy, the CPU and the model's CUDA devices."""
    borrower = object()
    with _giving:
        # nothing is on a device that was never begun with
        cuda = model.parameters() if torch.cuda.is_initialized() else ()
        things = _random_states({p.device for p in cuda if p.device.type == "cuda"})
        _take(things, borrower)
    try:
        yield
    finally:
        with _giving:
            _give_back(things, borrower)


def _random_states(devices: set[torch.device]) -> list[_Thing]:
    things = [
        _Thing("python", random.getstate(), random.setstate),
        _Thing("numpy", np.random.get_state(legacy=False), np.random.set_state),
        _Thing("cpu", torch.get_rng_state(), torch.set_rng_state),
    ]
    for device in devices:

        def put(state: Tensor, device: torch.device = device) -> None:
            torch.cuda.set_rng_state(state, device)

        things.append(_Thing(device, torch.cuda.get_rng_state(device), put))
    return things


# ---- a model, whose modules are the same for all threads ----


@dataclass(eq=False)
class _Loan:
    """One thread's borrowing of a model; whether another spoilt it."""

    thread: int
    spoilt: bool = False


@dataclass(eq=False)
class _LentModel:
    """A model that is lent, to one thread or several; the hook is there if a mode was changed."""

    loans: list[_Loan]
    refusing: RemovableHandle | None = None


_lent: dict[int, _LentModel] = {}  # id of a model


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    loan = _Loan(threading.get_ident())
    with _giving:
        modules, parameters = list(model.modules()), list(model.parameters())
        things = [*map(_module, modules), *map(_gradient, parameters)]
        _take(things, loan)
        training = any(module.training for module in modules)
        _lend(model, loan, refusing=training)
    try:
        for p in parameters:
            p.grad = None
        if training:
            _evaluating(model)
        yield
    finally:
        with _giving:
            _end(model, loan)
            _give_back(things, loan)
    if loan.spoilt:
        raise StateError(
            f"Another thread put {type(model).__name__} into training mode while it was being "
            "observed here, so what was observed meanwhile cannot be trusted. Let one wait for the "
            "other, or observe a copy: copy.deepcopy(model)."
        )


def _lend(model: nn.Module, loan: _Loan, *, refusing: bool) -> None:
    lent = _lent.setdefault(id(model), _LentModel([]))
    lent.loans.append(loan)
    # what TorchScript compiled takes no hooks; nor does its mode reach what was compiled
    if refusing and lent.refusing is None and not isinstance(model, torch.jit.ScriptModule):
        lent.refusing = model.register_forward_pre_hook(_refuse_strangers, prepend=True)


def _evaluating(model: nn.Module) -> None:
    """Put the model into eval mode; what `torch.export` made has one mode for good, and no way."""
    try:
        model.eval()
    except NotImplementedError:
        for module in model.modules():
            module.training = False


def _end(model: nn.Module, loan: _Loan) -> None:
    lent = _lent[id(model)]
    lent.loans.remove(loan)
    if not lent.loans:
        del _lent[id(model)]
        if lent.refusing is not None:
            lent.refusing.remove()


def _refuse_strangers(model: nn.Module, _args: Any) -> None:
    """A forward pre-hook: the call of a thread that did not borrow the model is refused."""
    lent = _lent.get(id(model))
    if lent is None:  # a copy that was made meanwhile
        for key, hook in list(model._forward_pre_hooks.items()):
            if hook is _refuse_strangers:
                del model._forward_pre_hooks[key]
        return
    if any(loan.thread == threading.get_ident() for loan in lent.loans):
        return
    if any(module.training for module in model.modules()):
        for loan in lent.loans:
            loan.spoilt = True
    raise StateError(
        f"{type(model).__name__} is being observed by another thread, in eval mode, so this call "
        "would not run in training mode. Let one wait for the other, or observe a copy: "
        "copy.deepcopy(model)."
    )


def _module(module: nn.Module) -> _Thing:
    """The mode and the buffers of one module."""
    buffers = [
        (name, buffer, None if buffer is None else buffer.detach().clone())
        for name, buffer in module._buffers.items()
    ]

    def put(found: tuple[bool, list[tuple[str, Tensor | None, Tensor | None]]]) -> None:
        if module.training is not found[0]:
            module.training = found[0]
        for name, buffer, values in found[1]:
            module._buffers[name] = buffer
            if buffer is None or values is None or _unchanged(buffer, values):
                continue
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(values)

    return _Thing(("module", id(module)), (module.training, buffers), put)


def _unchanged(buffer: Tensor, values: Tensor) -> bool:
    """Whether there is nothing to copy; a device would have to be waited for to know."""
    return buffer.device.type == "cpu" and torch.equal(buffer, values)


def _gradient(parameter: nn.Parameter) -> _Thing:
    """A parameter's gradient."""

    def put(found: Tensor | None) -> None:
        parameter.grad = found

    return _Thing(("gradient", id(parameter)), parameter.grad, put)


# ---- torch, as the engine can read it ----

FUSED = ("lstm", "gru", "rnn_tanh", "rnn_relu")  # layers that hide their steps


class _Together:
    """A context for all threads: entered by the first who wants it, left by the last."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with uninterrupted(), self._lock:
            if self._count == 0:
                self._held = self._make()
                self._held.__enter__()
            self._count += 1

    def __exit__(self, *_exception: object) -> None:
        with uninterrupted(), self._lock:
            self._count -= 1
            if self._count == 0:
                self._held.__exit__(None, None, None)


_here = threading.local()  # .borrowing: how often this thread does; .fused: see below


@contextmanager
def _thawed() -> Iterator[None]:
    """Without checkpointing and fused recurrence, in this thread."""
    with _replacements:
        _here.borrowing = getattr(_here, "borrowing", 0) + 1
        try:
            yield
        finally:
            _here.borrowing -= 1


@contextmanager
def fused() -> Iterator[None]:
    """Inside of `borrowed`: recurrence is fused, as in the user's own calls, in this thread."""
    before, _here.fused = getattr(_here, "fused", False), True
    try:
        yield
    finally:
        _here.fused = before


@contextmanager
def _replaced_in_torch() -> Iterator[None]:
    """Everything that has no switch, for threads that borrow.

    Non-reentrant checkpointing is saved-tensor hooks, reentrant a Function; recurrent layers that
    are fused hide their steps from the engine (oneDNN) or have no backward in eval mode (cuDNN).
    """

    def nothing(*_args: Any) -> None:
        pass

    def plainly(run: Any, _preserve_rng: Any, *args: Any) -> Any:
        return run(*args)

    def in_steps(at_once: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with nullcontext() if getattr(_here, "fused", False) else _unfused:
                return at_once(*args)

        return run

    stand_ins = [
        *((saved_tensors_hooks, name, nothing) for name in ("__enter__", "__exit__")),
        (checkpoint.CheckpointFunction, "apply", plainly),
        *((_VF, name, in_steps(getattr(_VF, name))) for name in FUSED),
    ]
    undo: list[Callable[[], None]] = []
    try:
        for owner, name, stand_in in stand_ins:
            undo.append(_replace(owner, name, stand_in))
        yield
    finally:
        for back in reversed(undo):
            back()


def _replace(owner: Any, name: str, stand_in: Callable[..., Any]) -> Callable[[], None]:
    """Another function under that name, which a class may also have inherited, while borrowing.

    What comes back puts the first one back.
    """
    own, before, original = name in vars(owner), vars(owner).get(name), getattr(owner, name)

    def either(*args: Any, **kwargs: Any) -> Any:
        return (stand_in if borrowing() else original)(*args, **kwargs)

    # `original`, asked for from a class, is a function of the instance, or bound to the class
    bound = isinstance(owner, type) and getattr(original, "__self__", None) is owner
    setattr(owner, name, staticmethod(either) if bound else either)
    return partial(setattr, owner, name, before) if own else partial(delattr, owner, name)


@contextmanager
def _fusing_off() -> Iterator[None]:
    cudnn, onednn = torch.backends.cudnn.enabled, torch._C._get_mkldnn_enabled()
    try:
        torch.backends.cudnn.enabled = False
        torch._C._set_mkldnn_enabled(False)  # its public form warns where there is no GPU
        yield
    finally:
        torch.backends.cudnn.enabled = cudnn
        torch._C._set_mkldnn_enabled(onednn)


_replacements = _Together(_replaced_in_torch)
_unfused = _Together(_fusing_off)
_eager = _Together(lambda: torch.compiler.set_stance("force_eager"))
