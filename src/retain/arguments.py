"""Arguments, checked before work begins: a wrong one is named, with what is expected."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from retain.closest import did_you_mean
from retain.errors import InputError
from retain.header import LARGEST, shown

KEPT = (torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64)
T = TypeVar("T")


def flag(name: str, value: T) -> T:
    """`value`, if it is true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}; expected True or False.")
    return value


def whole(name: str, value: T, *, least: int | None = None, most: int = LARGEST) -> T:
    """`value`, if it is a whole number within bounds."""
    number = isinstance(value, int) and not isinstance(value, bool)
    low = -most if least is None else least
    if not number or not low <= value <= most:  # type: ignore[operator]
        bounds = "a whole number" if least is None else f"at least {least}, a whole number"
        beyond = f" of at most {most:,}" if number and value > most else ""  # type: ignore[operator]
        raise InputError(f"{name}={shown(value)}; expected {bounds}{beyond}.")
    return value


def number(
    name: str, value: Any, *, least: float | None = None, above: float | None = None
) -> float:
    """`value` as a float, if it is a finite number within bounds."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        found = float(value) if fits else math.nan
    except OverflowError:
        found = math.inf
    inside = (least is None or found >= least) and (above is None or found > above)
    if not math.isfinite(found) or not inside:
        bounds = f" of at least {least:g}" if least is not None else ""
        bounds += f" above {above:g}" if above is not None else ""
        raise InputError(f"{name}={shown(value)}; expected a finite number{bounds}.")
    return found


def optional(check: Callable[..., Any], name: str, value: Any, **bounds: Any) -> Any:
    """None as it is, or what another check here says of `value`."""
    return None if value is None else check(name, value, **bounds)


def among(name: str, value: T, options: Iterable[str]) -> T:
    """`value`, if it is one of a few words."""
    known = list(options)
    if not isinstance(value, str) or value not in known:
        listed = ", ".join(known)
        near = did_you_mean(value, known) if isinstance(value, str) else ""
        raise InputError(f"{name}={shown(value)}; expected one of {listed}.{near}")
    return value


def function(name: str, value: T) -> T:
    """`value`, if it can be called or is None."""
    if value is not None and not callable(value):
        raise InputError(f"{name}={shown(value)}; expected a function, or None.")
    return value


def text(name: str, value: T) -> T:
    """`value`, if it is a text."""
    if not isinstance(value, str):
        raise InputError(f"{name}={shown(value)}; expected a text.")
    return value


def texts(name: str, value: object) -> tuple[str, ...]:
    """The texts in `value`, if it is several of them, and no single one."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, torch.Tensor)):
        found = tuple(value)
        if all(isinstance(one, str) for one in found):
            return found
    raise InputError(f"{name}={shown(value)}; expected several texts.")


def named_texts(name: str, value: object) -> dict[str, str]:
    """The texts in `value`, if it is a mapping from names to texts."""
    if not isinstance(value, Mapping) or not all(
        isinstance(one, str) for pair in value.items() for one in pair
    ):
        raise InputError(f"{name}={shown(value)}; expected a mapping from names to texts.")
    return dict(value)


def path(name: str, value: object, *, of: str = "a file") -> Path:
    """`value` as a path, if it can be one: an empty text is not the current folder."""
    said = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(said, str) or not said.strip() or "\0" in said:
        raise InputError(f"{name}={shown(value)}; expected the name of {of}.")
    found = Path(said)
    try:
        found.exists()
    except OSError as error:  # longer than any may be
        raise InputError(f"{name}={shown(value)}; no such path is possible: {error}.") from None
    return found


def absent(path: Path) -> str:
    """What is wrong with a path at which nothing is; it may be a link that leads nowhere."""
    if not path.is_symlink():
        return "does not exist"
    target = os.path.realpath(path)
    if os.path.islink(target):  # noqa: PTH114  (what cannot be followed any further)
        return "is a link that leads to itself"
    return f"is a link to {target}, which does not exist"


def instance(name: str, value: T, kind: type | tuple[type, ...], expected: str) -> T:
    """`value`, if it is of a kind; `expected` says how to get one."""
    if not isinstance(value, kind):
        raise InputError(f"{name}={shown(value)}; expected {expected}.")
    return value


def floating(name: str, value: T) -> T:
    """`value`, if it is None or a type that Ω and θ* can be kept in."""
    if value is not None and value not in KEPT:
        listed = ", ".join(str(dtype) for dtype in KEPT)
        raise InputError(
            f"{name}={shown(value)} cannot hold Ω and θ*; expected None or one of {listed}."
        )
    return value


def unusable(tensor: object) -> str:
    """What keeps it from being an Ω or θ* that torch computes with; "" where nothing does."""
    if not isinstance(tensor, torch.Tensor):
        return f"is a {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "is not dense"
    if tensor.dtype not in KEPT:
        return f"is {str(tensor.dtype).removeprefix('torch.')}"
    return "is on the meta device, without numbers" if tensor.is_meta else ""


def place(name: str, value: object) -> torch.device | None:
    """The device, if it is None or one that is here."""
    if value is None:
        return None
    try:
        device: torch.device = torch.device(value)  # type: ignore[call-overload]
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        why = str(error).strip().splitlines()
        raise InputError(
            f"{name}={shown(value)}; expected a device that is available here, such as 'cpu'. "
            f"(torch: {why[0] if why else type(error).__name__})"
        ) from error
    return device
