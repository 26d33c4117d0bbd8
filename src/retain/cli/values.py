"""What is written behind an option, as values: lists, strengths, settings of methods."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from retain.errors import ConfigError
from retain.experiment.config import AUTO, Strength
from retain.methods import METHODS, method_named


def names(given: str) -> tuple[str, ...]:
    """`a,b,c` as its parts."""
    return tuple(part.strip() for part in given.split(",") if part.strip())


def whole_numbers(given: str, option: str) -> tuple[int, ...]:
    """`0,1,2` as numbers.

    Raises:
        ConfigError: something else.
    """
    try:
        return tuple(int(part) for part in names(given))
    except ValueError:
        raise ConfigError(
            f"{option} is {given!r}; expected whole numbers with commas between, such as 0,1,2."
        ) from None


def strengths(given: Iterable[str], methods: Iterable[str]) -> dict[str, tuple[Strength, ...]]:
    """`mas=1,ewc=400`, `mas=0.1:1:10` (several, for a sweep), `mas=auto`, or `auto` for all.

    Raises:
        ConfigError: something else, or a strength for all where no method has one.
    """
    found: dict[str, tuple[Strength, ...]] = {}
    for part in (part for text in given for part in names(text)):
        method, equals, values = part.rpartition("=")
        chosen = tuple(_strength(value, part) for value in values.split(":"))
        if equals:
            found[method] = (*found.get(method, ()), *chosen)
        else:
            having = [m for m in methods if m in METHODS and METHODS[m].has_strength()]
            if not having:
                able = ", ".join(name for name in METHODS if METHODS[name].has_strength())
                raise ConfigError(
                    f"--strength {part}: none of the methods has a strength λ to set. "
                    f"Methods that have one: {able}."
                )
            found |= dict.fromkeys(having, chosen)
    return found


def _strength(value: str, part: str) -> Strength:
    if value == AUTO:
        return "auto"
    try:
        return float(value)
    except ValueError:
        raise ConfigError(
            f"--strength has {part!r}; expected METHOD=NUMBER, several as METHOD=0.1:1:10, or auto."
        ) from None


def settings(given: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`lwf.temperature=1` and its like, by method.

    Raises:
        ConfigError: something else.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        method, dot, option = name.partition(".")
        if not equals or not dot:
            raise ConfigError(f"--set has {text!r}; expected METHOD.OPTION=VALUE.")
        method_named(method)
        found.setdefault(method, {})[option] = _value(value)
    return found


def _value(text: str) -> Any:
    """A number, true or false, several numbers with colons between, or a word."""
    if ":" in text:
        return tuple(_value(part) for part in text.split(":"))
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
