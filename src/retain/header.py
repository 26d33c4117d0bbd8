"""Plain data beside tensors, read field by field: what is not as it should be is listed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
LARGEST = 1 << 62  # of a count; what is larger was never counted
SHOWN = 60  # characters of a value in a message


class Fields:
    """The fields of a header. Ask for each, then call `finish`, which raises if any was wrong.

    What is missing or wrong reads as something harmless meanwhile, so that all of it is found.
    """

    def __init__(self, header: Mapping[str, Any]) -> None:
        self._header = header
        self._wrong: list[str] = []

    def _of(self, name: str, fits: Callable[[Any], bool], expected: str, instead: T) -> T:
        if name not in self._header:
            self._wrong.append(f"{name} is missing")
            return instead
        value = self._header[name]
        if not fits(value):
            self._wrong.append(f"{name} is {shown(value)}, expected {expected}")
            return instead
        return value  # type: ignore[no-any-return]

    def text(self, name: str, among: Callable[[str], bool] = bool, expected: str = "a name") -> str:
        """A text that is not empty, or one that `among` accepts."""
        return self._of(name, lambda v: isinstance(v, str) and among(v), expected, "")

    def optional_text(
        self, name: str, among: Callable[[str], bool] = bool, expected: str = "a name"
    ) -> str | None:
        """The same, or None."""
        either = f"{expected} or null"
        return self._of(
            name, lambda v: v is None or (isinstance(v, str) and among(v)), either, None
        )

    def flag(self, name: str) -> bool:
        """True or false."""
        return self._of(name, lambda v: isinstance(v, bool), "true or false", False)

    def count(self, name: str) -> int:
        """A whole number of at least 0."""
        return self._of(name, is_count, "a whole number of at least 0", 0)

    def counts(self, name: str) -> list[int]:
        """Several of them."""
        return self._of(name, _all(is_count), "a list of whole numbers of at least 0", [])

    def number(self, name: str) -> float:
        """A finite number of at least 0."""
        return self._of(name, is_number, "a finite number of at least 0", 0.0)

    def optional_number(self, name: str) -> float | None:
        """The same, or None."""
        either = "a finite number of at least 0 or null"
        return self._of(name, lambda v: v is None or is_number(v), either, None)

    def optional_numbers(self, name: str) -> list[float | None]:
        """Several of them."""
        fits = _all(lambda v: v is None or is_number(v))
        return self._of(name, fits, "a list of finite numbers of at least 0 or null", [])

    def texts(self, name: str) -> list[str]:
        """Several texts."""
        return self._of(name, _all(_is_text), "a list of names", [])

    def several_texts(self, name: str) -> list[list[str]]:
        """Lists of texts."""
        return self._of(name, _all(_all(_is_text)), "a list of lists of names", [])

    def optional_texts(self, name: str) -> list[str] | None:
        """The same, or None."""
        fits = _all(_is_text)
        return self._of(name, lambda v: v is None or fits(v), "a list of names or null", None)

    def named_texts(self, name: str) -> dict[str, str]:
        """A text for each of several names."""
        return self._of(name, _named(_is_text), "a name for each parameter", {})

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """A shape for each of several names."""
        found: Mapping[str, list[int]] = self._of(
            name, _named(_is_shape), "a shape for each parameter", {}
        )
        return {parameter: tuple(shape) for parameter, shape in found.items()}

    def correlation(self, name: str) -> float | None:
        """A number from −1 to 1, or None."""
        return self._of(name, _is_correlation, "a number from -1 to 1 or null", None)

    def mappings(self, name: str) -> list[dict[str, Any]]:
        """Several, each with fields of its own."""
        fits = _all(lambda value: isinstance(value, Mapping))
        nothing: list[Mapping[str, Any]] = []
        return [dict(one) for one in self._of(name, fits, "a list of fields", nothing)]

    def mapping(self, name: str) -> dict[str, Any]:
        """Fields within a field."""
        return dict(self._of(name, lambda v: isinstance(v, Mapping), "fields of its own", {}))

    def take(self, name: str, fields: Fields) -> None:
        """Add what was wrong in the fields within `name`."""
        self._wrong += [f"{name}.{said}" for said in fields._wrong]

    def finish(self) -> None:
        """Raise if anything was missing or wrong.

        Raises:
            ValueError: with all of it.
        """
        if self._wrong:
            raise ValueError("; ".join(self._wrong))


def shown(value: object) -> str:
    """A value in a message, cut where it is long; never an error of its own."""
    try:
        said = repr(value)
    except Exception:  # thousands of digits, lists within lists, an object that cannot be written
        return f"an unreadable {type(value).__name__}"
    return said if len(said) <= SHOWN else f"{said[: SHOWN - 1]}…"


def is_count(value: object) -> bool:
    """Whether it is a whole number that something could have been counted to."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def is_number(value: object) -> bool:
    """Whether it is a finite number of at least 0, and fits into a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value)) and value >= 0
    except OverflowError:
        return False


def _is_correlation(value: object) -> bool:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (fits and -1.001 <= value <= 1.001)  # type: ignore[operator]


def _is_shape(value: object) -> bool:
    """Whether a tensor can have it, also where one of its sides is 0."""
    fits = _all(is_count)(value)
    return fits and math.prod(max(side, 1) for side in value) <= LARGEST  # type: ignore[attr-defined]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _all(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(fits, value))


def _named(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(name, str) and fits(one) for name, one in value.items())
    )
