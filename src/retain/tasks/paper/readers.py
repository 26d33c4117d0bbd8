"""Reading lists and tables that come with data sets, and unpacking archives."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from retain.errors import FileError
from retain.extras import needs

T = TypeVar("T")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold anything.

    Raises:
        FileError: it is missing, or not text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} could not be read: {error}.") from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line]


def parse_lines(path: Path, parse: Callable[[str], T], form: str) -> list[T]:
    """What `parse` makes of each line.

    Raises:
        FileError: the first line that it fails on, with the form that was expected.
    """
    parsed = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            parsed.append(parse(line))
        except (ValueError, IndexError, KeyError) as error:
            raise FileError(f"{path}, line {number}: {line!r}; expected {form}.") from error
    return parsed


def read_mat(path: Path, *names: str) -> list[Any]:
    """The variables of those names in a Matlab file, with dimensions of length one taken out.

    Raises:
        FileError: it is missing, not a Matlab file, or one of the variables is not in it.
    """
    if not path.is_file():
        raise FileError(f"{path} is missing.")
    loadmat = needs("scipy.io").loadmat
    try:
        loaded = loadmat(path, squeeze_me=True)
    # scipy raises many kinds of errors on a file that is cut off or something else.
    except Exception as error:
        raise FileError(f"{path} is not a readable Matlab file: {error}.") from error
    absent = [name for name in names if name not in loaded]
    if absent:
        there = ", ".join(name for name in loaded if not name.startswith("__"))
        raise FileError(f"{path} has no {', '.join(absent)}; it has: {there or 'nothing'}.")
    return [loaded[name] for name in names]


def unpack(archive: Path, into: Path) -> None:
    """The files in `archive` are in `into`: all of them, or none if it fails.

    Raises:
        FileError: the archive is damaged, or the folder cannot be written.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix="unpacking-") as folder:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
            for entry in Path(folder).iterdir():
                entry.rename(into / entry.name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FileError(
            f"{archive} could not be unpacked into {into}: {error}. Get it again if it is damaged, "
            "or unpack it yourself."
        ) from error
