"""In what precision a graph was computed, and how much of a difference rounding explains there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

BEST = "ieee"  # the name of "no rounding of operands" in torch.backends.….fp32_precision


@dataclass(frozen=True)
class Precision:
    """The narrowest floating point type of any result in a graph, as autocast may have made it.

    Three kinds of difference are told from rounding, each relative to what it is a part of:

    Attributes:
        dtype: that type.
        layout: of a gradient's elements, to the largest of the sample that owns them.
        share: of the gradients that a sample owns, taken together, to their own size.
        result: of outputs and sums in different orders of computing, to their own norm.
        zero: of a gradient that is zero in exact arithmetic, to the largest in the model.
    """

    dtype: torch.dtype

    @property
    def layout(self) -> float:
        """Noise is up to 1e-5 of it (float32, fifty layers); another sample's element, half."""
        return {8: 1e-9, 4: 1e-3}.get(self.dtype.itemsize, 5e-2)

    @property
    def share(self) -> float:
        """As for layouts; sums of many elements wander less than each of them."""
        return {8: 1e-9, 4: 1e-4}.get(self.dtype.itemsize, 3e-2)

    @property
    def result(self) -> float:
        """Generous, since a model may compute in less precision inside; a wrong rule is far off."""
        return {8: 1e-6, 4: 1e-3}.get(self.dtype.itemsize, 1e-1)

    @property
    def zero(self) -> float:
        """Rounding noise, where nothing else is."""
        return {8: 1e-12, 4: 1e-6}.get(self.dtype.itemsize, 1e-2)

    @property
    def exponents(self) -> int:
        """How many powers of two a weight may span before gradients leave the type's range."""
        return 6 if self.dtype == torch.float16 else 32


def narrowest(*dtypes: torch.dtype) -> torch.dtype:
    """The floating point type with the fewest bits; of two with as many, the smaller range."""
    floating = [d.to_real() for d in dtypes if d.is_floating_point or d.is_complex]
    return min(floating, key=lambda d: (d.itemsize, torch.finfo(d).max), default=torch.float32)


# ---- TF32 and its like, off for a while ----

Switch = tuple[Callable[[], Any], Callable[[Any], None], Any]  # read, set, the best setting


class _Off:
    """The switches, off while anybody needs them off; they are the whole process's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._before = ExitStack()

    def enter(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                for read, turn, best in _switches():
                    before = read()
                    if before != best:
                        turn(best)
                        self._before.callback(turn, before)

    def leave(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._before.close()


_off = _Off()


@contextmanager
def unrounded() -> Iterator[None]:
    """Products and convolutions of float32 numbers in float32: no TF32, no bfloat16 inside.

    Of several threads in here, the last one out puts the switches back.
    """
    _off.enter()
    try:
        yield
    finally:
        _off.leave()


def _switches() -> list[Switch]:
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


# ---- autocast, off for a while ----


@contextmanager
def without_autocast() -> Iterator[None]:
    """The caller's autocast is for the model's forward, not for arithmetic on its gradients."""
    with ExitStack() as stack:
        for kind in {"cpu", _accelerator()}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _accelerator() -> str:
    here = torch.accelerator.current_accelerator()
    return "cpu" if here is None else here.type
