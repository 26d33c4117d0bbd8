"""The page: sections put into a template, every picture inside it and beside it as files."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain import arguments, atomic
from retain.errors import FileError, InputError
from retain.extras import needs
from retain.report import text
from retain.report.figures.canvas import NARROW
from retain.report.figures.style import COLOURS
from retain.report.figures.svg import drawn
from retain.report.sections import sections
from retain.report.variants import ShownResults, Source, read


@dataclass(frozen=True)
class Shown:
    """A picture as the template wants it: an `<svg>` for each width."""

    id: str
    caption: str
    small: bool
    drawn: list[str]


def written(results: Source, out: Path | str | None) -> list[Path]:
    """See `retain.report.write`."""
    folder = _folder(results, out)
    content = read(results)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"The report cannot be written into {folder}: {error.strerror or error}. "
            "Give a folder that can be written to."
        ) from error
    page, files = rendered(content, folder / "figures")
    atomic.write(folder / "report.html", page)
    return [folder / "report.html", *files]


def _folder(results: Source, out: Path | str | None) -> Path:
    if out is not None:
        return arguments.path("out", out, of="a folder")
    if not isinstance(results, Path | str):
        raise InputError("These results were not read from a folder; say where to write with out=.")
    return Path(results) if Path(results).is_dir() else Path(results).parent


def rendered(results: ShownResults, figures: Path) -> tuple[str, list[Path]]:
    """The page as HTML, and the picture files that were written into the folder `figures`."""
    jinja2 = needs("jinja2")
    files: list[Path] = []
    shown = []
    for section in sections(results):
        parts = []
        for part in section.parts:
            pictures = []
            for picture in part.pictures:
                widths, paths = drawn(picture, figures, text.corner(results))
                small = picture.widths == (NARROW,)
                pictures.append(Shown(picture.name, picture.caption, small, widths))
                files += paths
            parts.append({**_fields(part), "pictures": pictures})
        shown.append({**_fields(section), "parts": parts})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("retain.report"), autoescape=True, trim_blocks=True
    )
    environment.filters["breakable"] = _breakable
    script = environment.get_template("page.js").render()
    page: str = environment.get_template("page.html").render(
        script=needs("markupsafe").Markup(script),
        allowed=_digest(script),
        title=text.title(results),
        summary=text.summed_up(results),
        notices=text.notices(results),
        corner=text.corner(results),
        facts=text.facts(results),
        sections=shown,
        colours=COLOURS,
        source=Path(results.source).name,
    )
    return page, files


def _digest(script: str) -> str:
    """What a Content-Security-Policy calls a script that it allows: what stands in its element."""
    inside = f"\n{script}\n".encode()
    return f"sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}"


def _breakable(text: str) -> Any:
    """The text as HTML, with a chance of a new line inside of paths and names of files."""
    markup = needs("markupsafe").Markup
    return markup("<wbr>").join(re.split(r"(?<=[/:])(?=\S)", text))


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
