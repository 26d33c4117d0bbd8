"""What is wrong with values from outside, in sentences: of options, and of files of JSON.

The models say what each value has to be; pydantic finds what is not; here that is put in words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from retain.closest import did_you_mean
from retain.errors import ConfigError, FileError
from retain.experiment.disk import DIGEST, Seal, seal_of
from retain.header import shown
from retain.readable import content_of
from retain.saying import warn

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
SHOWN = 40  # characters of a value
LISTED = 20  # problems of a file
EXPECTED = "expected"  # the type of errors whose message is what would have been right

PHRASES = {
    "string_type": "a word",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "dataclass_type": "an object",
    "model_type": "an object",
    "is_instance_of": "an object",
}


MAPPINGS = ("dict_type", "mapping_type")


def wrong(expected: str) -> NoReturn:
    """Say in a validator that a value is not what it should be, such as "a number from 0 to 1"."""
    raise PydanticCustomError("expected", "{phrase}", {"phrase": expected})


def several(value: Any) -> tuple[Any, ...]:
    """One value or several, always as a tuple."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _fraction(value: float) -> float:
    return value if 0 <= value <= 1 else wrong("a fraction from 0 to 1, not percent")


def _word(value: str) -> str:  # not `min_length`, which takes no name that is not UTF-8
    return value if value else wrong("a word that is not empty")


Several = BeforeValidator(several)
Word = Annotated[str, AfterValidator(_word)]
Fraction = Annotated[float, AfterValidator(_fraction)]
Whole = Annotated[int, Field(ge=0)]


def expected(error: ErrorDetails) -> str:
    """What would have been right."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == EXPECTED:
        return str(context["phrase"])
    if kind == "greater_than_equal":
        return f"{context['ge']} or more"
    if kind == "less_than_equal":
        return f"{context['le']} or less"
    if kind == "greater_than":
        return f"more than {context['gt']:g}"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    return PHRASES.get(kind, error["msg"])


def checked(model: type[T]) -> type[T]:
    """The model, which raises a ConfigError in sentences for everything that is wrong at once."""
    made: Callable[..., None] = model.__init__

    def __init__(self: Any, *values: Any, **named: Any) -> None:  # noqa: N807
        try:
            made(self, *values, **named)
        except ValidationError as error:
            found = dict.fromkeys(sentence(model, one) for one in error.errors())
            raise ConfigError(" ".join(found)) from None

    __init__.__doc__ = made.__doc__
    model.__init__ = __init__  # type: ignore[method-assign]
    return model


def sentence(model: Any, error: ErrorDetails) -> str:
    """One thing that is wrong with a value given for one of the model's fields."""
    fields = getattr(model, "__pydantic_fields__", {})
    name = str(error["loc"][0]) if error["loc"] else ""
    value, kind = error["input"], error["type"]
    if kind == "value_error":  # it says everything itself
        return str(error["ctx"]["error"])
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        what = model.__name__.lower()
        return f"A {what} has no field {name!r}.{did_you_mean(name, fields)}"
    if kind in ("missing", "missing_argument"):
        return f"{name} is missing."
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return unknown(name.removesuffix("s"), value, known)
    right = expected(error)
    if kind in MAPPINGS:
        right = "a mapping with methods as keys"
    if len(error["loc"]) > 1:
        return f"{name} has {shown(value)}; expected {right}."
    if name in fields and type(None) in get_args(fields[name].annotation):
        right += " or None"
    return f"{name} is {shown(value)}; expected {right}."


def unknown(kind: str, given: Any, known: Iterable[str]) -> str:
    """`Unknown method 'maas'. Did you mean 'mas'? Known: …`."""
    names = list(known)
    near = did_you_mean(given, names) if isinstance(given, str) else ""
    return f"Unknown {kind} {shown(given)}.{near} Known: {', '.join(names)}."


# ---- files of JSON ----


def loaded(path: Path, remedy: str) -> Any:
    """The JSON in a file, of whatever kind.

    Args:
        path: of the file.
        remedy: a sentence on what to do about a file that is damaged.

    Raises:
        FileNotFoundError: there is none.
        FileError: it cannot be opened, holds no JSON, or was damaged; the message says which.

    A file that another program wrote anew, with a digest that does not fit, is read with a warning.
    """
    try:
        content = content_of(path)
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} cannot be read as text: {error}. {remedy}") from None
    try:
        return _sealed(json.loads(text, parse_constant=_no_number), content, path, remedy)
    except json.JSONDecodeError as error:
        # Cut off: the parser stops at the end of the file, or in a string that never ends.
        cut = not text.strip() or error.pos >= len(text.rstrip()) or "Unterminated" in error.msg
        why = "ends in the middle, as after a broken copy," if cut else "is not JSON"
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
    except RecursionError:
        why, where = "is not JSON of ours", "it is nested too deeply"
    except (ValueError, MemoryError) as error:
        why, where = "is not JSON of ours", str(error).partition(";")[0]
    raise FileError(f"{path} {why} ({where}). {remedy}")


def _sealed(held: Any, content: bytes, path: Path, remedy: str) -> Any:
    seal = seal_of(held, content)
    if seal is Seal.DAMAGED:
        raise FileError(
            f"{path} is damaged, or was edited: its {DIGEST} does not match its content. If you "
            f"edited it, remove its last line, {DIGEST}, too. {remedy}"
        )
    if seal is Seal.REWRITTEN:
        warn(
            f"{path} was changed after it was written: its {DIGEST} does not match its content. If "
            "another program changed it on purpose, let that program remove the field."
        )
    return held


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def problems(error: ValidationError) -> Iterator[str]:
    """What is wrong with the content of a file, a line for each place."""
    for one in error.errors():
        where = place(one["loc"])
        if one["type"] in ("missing", "missing_argument"):
            yield f"{where} is missing"
        elif one["type"] == "value_error":
            yield f"{where} {one['ctx']['error']}"
        else:
            yield f"{where} should be {expected(one)}, but {told(one['input'])}"


def place(steps: Iterable[int | str]) -> str:
    """`runs[1].accuracy[0]`."""
    written = "".join(f"[{s}]" if isinstance(s, int) else f".{_short(s)}" for s in steps)
    return written.removeprefix(".")


def _short(name: str) -> str:
    return name if len(name) <= SHOWN else f"{name[: SHOWN - 1]}…"


def told(value: Any) -> str:
    """What was found, in a few words."""
    return "is missing" if value is None else f"is {shown(value)}"


def listed(found: Iterable[str]) -> str:
    """The problems, one a line, the first twenty of them."""
    lines = list(found)
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "".join(f"\n  - {line}" for line in [*lines[:LISTED], *more])
