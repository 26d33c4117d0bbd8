"""The options of a command, made from the fields that describe them; and what is written as values.

A field of a model says what an option is, its default and its bounds. Here it becomes
`--its-name`, with its help; what a user writes behind it becomes a value of the field's type.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from retain import atomic
from retain.errors import ConfigError
from retain.experiment.config import AUTO, Strength
from retain.methods import METHODS, method_named

Command = Callable[..., None]
NOTHING = (None, (), "", False)  # defaults that need not be told


def path(given: str | Path) -> Path:
    """A path that is not empty: nothing is not the current folder. Defaults come here, too."""
    if not str(given).strip():
        raise typer.BadParameter("it is empty; give a path, such as . for the current folder.")
    if "\0" in str(given):
        raise typer.BadParameter("it contains a zero byte, which no path can.")
    found = Path(given)
    try:
        found.exists()
    except OSError as error:
        raise typer.BadParameter(f"no such path is possible: {error.strerror}.") from None
    return found


def out_option(help_: str) -> Any:
    """`--out`, which every command has that writes."""
    return typer.Option("--out", help=help_, parser=path, metavar="PATH")


def flag_of(name: str, field: Any) -> str | None:
    """How a field is called on the command line; None where it is not there."""
    extra = field.json_schema_extra or {}
    flag: str | None = extra.get("flag", f"--{name.replace('_', '-')}")
    return flag


def fields_of(model: type) -> dict[str, Any]:
    """The fields of a model by name, with their descriptions."""
    found: dict[str, Any] = getattr(model, "__pydantic_fields__", {})
    return found


def described_by(
    model: type,
    names: Iterable[str] | None = None,
    *,
    defaults: bool = True,
    left_out: Mapping[str, str] | None = None,
) -> Callable[[Command], Command]:
    """A decorator: the command's `**written` becomes an option for each field of the model.

    Args:
        model: whose fields they are.
        names: only these fields, in this order.
        defaults: whether the help tells the fields' defaults.
        left_out: what happens where an option is left out; by default what the fields say, if the
            help tells defaults.
    """
    fields = fields_of(model)
    parameters = [
        _parameter(name, fields[name], defaults, (left_out or {}).get(name))
        for name in (names or fields)
        if flag_of(name, fields[name])
    ]

    def with_options(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [one for one in own if one.kind is not inspect.Parameter.VAR_KEYWORD]
        command.__signature__ = inspect.Signature([*kept, *parameters])  # type: ignore[attr-defined]
        return command

    return with_options


def _parameter(name: str, field: Any, defaults: bool, left_out: str | None) -> inspect.Parameter:
    flag = flag_of(name, field)
    kind = _kind(field.annotation)
    is_mapping = _is_mapping(field.annotation)
    own = _left_out(field) if defaults else ""
    help_ = _sentence(_told(field.description, own if left_out is None else left_out))
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    if defaults and left_out is None and default not in NOTHING and default != {}:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        help_ += f" [dim]\\[default: {shown}][/]"
    option = typer.Option(flag, help=help_, show_default=False)
    taken: Any = (list[str] if is_mapping else kind) | None
    annotation: Any = Annotated[taken, option]  # type: ignore[valid-type, unused-ignore]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _left_out(field: Any) -> str:
    """What the field says happens where it is left out."""
    said: str = (field.json_schema_extra or {}).get("left_out", "")
    return said


def _told(description: str, left_out: str) -> str:
    return f"{description}; if left out, {left_out}" if left_out else description


def _sentence(description: str) -> str:
    from rich.markup import escape

    said = escape(description)
    return f"{said[0].upper()}{said[1:]}." if said[0] not in "λ" else f"{said}."


def _bare(annotation: Any) -> Any:
    """A type without `| None`, `Annotated` and the values it is restricted to."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    options = [one for one in get_args(annotation) if one is not type(None)]
    return _bare(options[0]) if type(None) in get_args(annotation) else annotation


def _is_mapping(annotation: Any) -> bool:
    return get_origin(_bare(annotation)) is Mapping


def _kind(annotation: Any) -> type:
    """What typer reads: numbers and flags as such, everything else as text."""
    bare = _bare(annotation)
    return bare if bare in (int, float, bool) else str


def given(model: type, written: Mapping[str, Any], methods: Iterable[str]) -> dict[str, Any]:
    """What was written behind options, as values of the model's fields; what was not is left out.

    Args:
        model: whose fields they are.
        written: by the names of the fields; None where an option was not given.
        methods: whose strength one strength for all is.

    Raises:
        ConfigError: something that cannot be read.
    """
    fields = fields_of(model)
    return {
        name: _value_of(name, fields[name], text, methods)
        for name, text in written.items()
        if text is not None
    }


def _value_of(name: str, field: Any, written: Any, methods: Iterable[str]) -> Any:
    bare, flag = _bare(field.annotation), flag_of(name, field)
    if name == "strengths":
        return strengths(written, methods)
    if name == "sweeps":
        return sweeps(written)
    if _is_mapping(bare):
        return settings(written)
    if get_origin(bare) is tuple:
        whole = _bare(get_args(bare)[0]) is int
        return whole_numbers(written, str(flag)) if whole else several(written, str(flag))
    return written


# ---- what is written ----


def names(given: str) -> tuple[str, ...]:
    """`a,b,c` as its parts."""
    return tuple(part.strip() for part in given.split(",") if part.strip())


def several(given: str, option: str) -> tuple[str, ...]:
    """`a,b,c` as its parts, at least one.

    Raises:
        ConfigError: there is none.
    """
    if not names(given):
        raise ConfigError(f"{option} is {given!r}; expected names separated by commas.")
    return names(given)


def whole_numbers(given: str, option: str) -> tuple[int, ...]:
    """`0,1,2` as numbers.

    Raises:
        ConfigError: something else.
    """
    try:
        return tuple(int(part) for part in names(given))
    except ValueError:
        raise ConfigError(
            f"{option} is {given[:40]!r}; expected whole numbers separated by commas, such as "
            "0,1,2."
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


def sweeps(given: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """`replay=0.01:0.1`, also as `replay.share=0.01:0.1`, by method.

    Raises:
        ConfigError: something else, or an option that is not the method's knob.
    """
    found: dict[str, tuple[float, ...]] = {}
    for part in (part for text in given for part in names(text)):
        name, _, values = part.partition("=")
        method, dot, option = name.partition(".")
        knob = method_named(method).knob
        if dot and option != knob:
            raise ConfigError(f"--sweep has {part!r}; the knob of {method} is {knob or 'nothing'}.")
        try:
            chosen = tuple(float(value) for value in values.split(":"))
        except ValueError:
            raise ConfigError(
                f"--sweep has {part!r}; expected METHOD=NUMBER:NUMBER, such as replay=0.01:0.1."
            ) from None
        found[method] = (*found.get(method, ()), *chosen)
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


# ---- the table in the documentation ----

BEGIN, END = "<!-- {}: python -m retain.cli.flags docs/runner.md -->", "<!-- end -->"


def table(model: type, order: Iterable[str]) -> str:
    """A row a field: its name, its option, its default and what it is."""
    fields = fields_of(model)
    rows = [_row(name, fields[name]) for name in order]
    return "\n".join(["| field | option | default | what it is |", "|---|---|---|---|", *rows])


def _row(name: str, field: Any) -> str:
    flag, example = flag_of(name, field), (field.json_schema_extra or {}).get("example", "")
    option = f"`{f'{flag} {example}'.strip()}`" if flag else "–"
    default = "" if field.is_required() else field.get_default(call_default_factory=True)
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    said = "" if default in NOTHING or default == {} else f"`{shown}`"
    told = _told(field.description, _left_out(field)).replace("|", r"\|")
    return f"| `{name}` | {option} | {said} | {told} |"


def with_table(page: str, model: type, order: Iterable[str], name: str = "options") -> str:
    """The page with the table called `name` as it is now."""
    begin = BEGIN.format(name)
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{table(model, order)}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    import sys

    from retain.experiment.config import FIELDS, Config
    from retain.experiment.workers.crew import Workforce

    page = Path(sys.argv[1])
    text = with_table(page.read_text(encoding="utf-8"), Config, FIELDS)
    atomic.write(page, with_table(text, Workforce, fields_of(Workforce), "workforce"))
