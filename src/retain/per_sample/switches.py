"""PyTorch's own switches for how it computes, turned for a while and then back as they were.

They belong to the whole process: of several threads in here, the first one in turns them and the
last one out turns them back.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils import deterministic as filling

BEST = "ieee"  # the name of "no rounding of operands" in torch.backends.….fp32_precision

Switch = tuple[Callable[[], Any], Callable[[Any], None], Any]  # read, turn, to what
Strictness = tuple[bool, bool]  # deterministic algorithms only; a warning where there are none


class _Turned:
    """Switches that are turned while anybody needs it."""

    def __init__(self, switches: Callable[[], list[Switch]]) -> None:
        self._switches = switches
        self._lock = threading.Lock()
        self._holders = 0
        self._before = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._holders == 0:
                self._turn()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._before.close()

    def _turn(self) -> None:
        try:
            for read, turn, best in self._switches():
                before = read()
                if before != best:
                    self._before.callback(turn, before)
                    turn(best)
        except BaseException:
            self._before.close()
            raise


# ---- TF32 and its like ----


def _rounding() -> list[Switch]:
    """What may round float32 operands, by PyTorch's older names unless a program uses the newer.

    PyTorch refuses the older ones once both were used, and the newer ones can overrule them.
    """
    cudnn, onednn, matmul = torch.backends.cudnn, torch.backends.mkldnn, torch.backends.cuda.matmul
    parents = (getattr(one, "fp32_precision", "none") for one in (torch.backends, cudnn, onednn))
    if all(precision == "none" for precision in parents):
        try:
            _ = cudnn.allow_tf32, torch.get_float32_matmul_precision()
        except RuntimeError:
            pass
        else:
            set_matmul = torch.set_float32_matmul_precision
            products = (torch.get_float32_matmul_precision, set_matmul, "highest")
            return [_switch(cudnn, "allow_tf32", False), products]
    parts: tuple[Any, ...] = (cudnn.conv, cudnn.rnn, matmul, onednn.conv, onednn.matmul)  # type: ignore[attr-defined]
    return [_switch(part, "fp32_precision", BEST) for part in parts]


def _switch(owner: Any, name: str, best: Any) -> Switch:
    return (lambda: getattr(owner, name), lambda value: setattr(owner, name, value), best)


def settings() -> tuple[object, ...]:
    """How the switches for rounding stand."""
    return tuple(read() for read, _, _ in _rounding())


_unrounded = _Turned(_rounding)


def unrounded() -> AbstractContextManager[None]:
    """Products and convolutions of float32 numbers in float32: no TF32, no bfloat16 inside."""
    return _unrounded()


# ---- the same numbers each time ----


def _strictness() -> Strictness:
    strict = torch.are_deterministic_algorithms_enabled()
    return strict, torch.is_deterministic_algorithms_warn_only_enabled()


def _be(strictness: Strictness) -> None:
    torch.use_deterministic_algorithms(strictness[0], warn_only=strictness[1])


def _repeatable() -> list[Switch]:
    """Deterministic algorithms where there are any, and none that is chosen by a race."""
    here: list[Switch] = [
        (_strictness, _be, (True, True)),
        _switch(torch.backends.cudnn, "benchmark", False),
    ]
    if not torch.are_deterministic_algorithms_enabled():  # which else fills new memory, for a user
        here.append(_switch(filling, "fill_uninitialized_memory", False))
    return here


def _lenient() -> list[Switch]:
    """No error where an operation has no deterministic algorithm, if there would be one."""
    return [(_strictness, _be, (True, True))] if _strictness() == (True, False) else []


_repeating, _leniently = _Turned(_repeatable), _Turned(_lenient)


@contextmanager
def repeatable() -> Iterator[None]:
    """Deterministic algorithms wherever there are any; nothing is said where there are none."""
    with _repeating(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        warnings.filterwarnings("ignore", message=".*not deterministic")
        yield


def leniently() -> AbstractContextManager[None]:
    """Under `use_deterministic_algorithms(True)`, a warning where PyTorch would raise an error.

    What is computed for single samples may need operations that a training step does not.
    """
    return _leniently()


# ---- autocast, off for a while ----


def without_autocast() -> AbstractContextManager[Any]:
    """The caller's autocast is for the model's forward, not for arithmetic on its gradients."""
    kinds = [kind for kind in {"cpu", _accelerator()} if torch.is_autocast_enabled(kind)]
    return _off(kinds) if kinds else nullcontext()


@contextmanager
def _off(kinds: Iterable[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _accelerator() -> str:
    here = torch.accelerator.current_accelerator()
    return "cpu" if here is None else here.type
