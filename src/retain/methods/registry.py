"""Every method by its name, and its options with what is asked for filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from retain import arguments
from retain.closest import did_you_mean
from retain.errors import ConfigError
from retain.header import shown
from retain.methods.ebll import EBLL
from retain.methods.ewc import EWCMethod, OnlineEWCMethod
from retain.methods.finetune import FineTune
from retain.methods.freeze import Freeze
from retain.methods.imm import IMMMean, IMMMode
from retain.methods.joint import Joint
from retain.methods.kl import KL
from retain.methods.l2_sp import L2SP
from retain.methods.lora import LoRA
from retain.methods.low_lr import LowLR
from retain.methods.lwf import LwF
from retain.methods.mas import LocalMASMethod, MASMethod
from retain.methods.method import Method
from retain.methods.model_soup import ModelSoup
from retain.methods.replay import Replay
from retain.methods.si import SIMethod
from retain.methods.wise_ft import WiSEFT
from retain.ranges import described, fits

# What the MAS paper compares, and what people do instead.
_PAPER = (
    FineTune,
    Joint,
    LwF,
    EBLL,
    IMMMean,
    IMMMode,
    EWCMethod,
    OnlineEWCMethod,
    SIMethod,
    MASMethod,
    LocalMASMethod,
)
_PRACTICE = (L2SP, LowLR, Freeze, Replay, KL, LoRA, WiSEFT, ModelSoup)
METHODS: dict[str, type[Method[Any]]] = {kind.name: kind for kind in (*_PAPER, *_PRACTICE)}
PAPER: tuple[str, ...] = tuple(kind.name for kind in _PAPER)


def method_named(name: str) -> type[Method[Any]]:
    """The method that is called `name`.

    Raises:
        ConfigError: none is.
    """
    arguments.text("method", name)
    if name not in METHODS:
        raise ConfigError(
            f"Unknown method {name!r}.{did_you_mean(name, METHODS)} Known: {', '.join(METHODS)}."
        )
    return METHODS[name]


def options_of(name: str, given: Mapping[str, Any]) -> Any:
    """The options of method `name`: its defaults, replaced by what is `given`.

    Raises:
        ConfigError: an unknown method or option, or a value of another type or out of its range.
    """
    kind = method_named(name).Options
    arguments.instance(f"the options of {name}", given, Mapping, "a mapping by name")
    types = get_type_hints(kind, include_extras=True)
    values, problems = {}, []
    for option, value in given.items():
        if option not in types:
            known = f"Its options: {', '.join(types)}." if types else "It has none."
            near = did_you_mean(option, types)
            problems.append(f"{name} has no option {option!r}.{near} {known}")
        elif not fits(value, types[option]):
            expected = described(types[option])
            problems.append(f"{name}.{option} is {shown(value)}; expected {expected}.")
        else:
            values[option] = value
    if problems:
        raise ConfigError(" ".join(problems))
    return kind(**values)
