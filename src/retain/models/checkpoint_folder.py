"""A checkpoint as `save_pretrained` writes it: a folder, with weights in one file or several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retain import readable
from retain.errors import FileError
from retain.header import shown

INDEX = ".index.json"
# In this order: safetensors are whole or not at all.
WHOLE = ("model.safetensors", "pytorch_model.bin")
LISTED = 20


def is_checkpoint(path: Path) -> bool:
    """Whether it is an index of weights in several files, or a folder with weights."""
    return path.name.endswith(INDEX) or (path.is_dir() and _inside(path) is not None)


def read_checkpoint(path: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """The tensors of all files together, by name.

    Args:
        path: a folder, or the index in it.
        read: gives what is in one file.

    Raises:
        FileError: an index that says something else, files that are missing (all are named), or
            names that are not in the file that the index says.
    """
    inside = _inside(path) if path.is_dir() else path
    if inside is None:
        raise FileError(f"{path} is a folder without {' or '.join(WHOLE)}, or an index of them.")
    if not inside.name.endswith(INDEX):
        return dict(read(inside))
    files = _files_by_name(inside)
    missing = sorted(name for name in set(files.values()) if not (inside.parent / name).is_file())
    if missing:
        raise FileError(
            f"{inside} names files that are not there: {', '.join(missing[:LISTED])}. Copy the "
            "whole folder again."
        )
    found: dict[str, Any] = {}
    for name in sorted(set(files.values())):
        found |= read(inside.parent / name)
    lost = [name for name in files if name not in found]
    if lost:
        raise FileError(
            f"{inside} promises weights that none of its files has: {', '.join(lost[:LISTED])}. "
            "Copy the whole folder again."
        )
    return found


def _inside(folder: Path) -> Path | None:
    names = [name for whole in WHOLE for name in (whole, f"{whole}{INDEX}")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _files_by_name(index: Path) -> dict[str, str]:
    """Name of a weight -> name of its file, which lies beside the index."""
    try:
        written = json.loads(readable.content_of(index))
        files = written["weight_map"]
        odd = [f for f in files.values() if not isinstance(f, str) or Path(f).name != f]
    except FileNotFoundError:
        raise FileError(f"{index} does not exist.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{index} is no index of weights: expected a weight_map.") from error
    if odd or not files:
        said = f", such as {shown(odd[0])}" if odd else ""
        raise FileError(f"{index} is no index of weights: it names no files beside it{said}.")
    return dict(files)
