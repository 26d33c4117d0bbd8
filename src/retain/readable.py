"""Whether a path can be read as a file, and what is in it, before anything waits or grows for it.

A pipe that nobody writes to is waited for without end, a device such as /dev/zero never ends, and
what a file says of its own size may be more than any machine has.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from retain import arguments
from retain.errors import FileError

MOST_TEXT = 1 << 30  # bytes of a file of text: a results.json of a thousand runs takes some 10 MB
HELD = 0.01  # the part of a file that is on the disk at the least, unless most of it is missing


def why_not(path: Path) -> str:
    """What keeps a path from being read as a file, to stand behind its name; "" if nothing does."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        nowhere = getattr(error, "errno", None) in (errno.ENOENT, errno.ELOOP)
        return arguments.absent(path) if nowhere else _not_opened(error)
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    if not stat.S_ISREG(mode):
        return "is a pipe, a socket or a device, not a file"
    if not os.access(path, os.R_OK):
        return "cannot be opened: Permission denied"
    return ""


def content_of(path: Path, most: int = MOST_TEXT) -> bytes:
    """What is in a file.

    Raises:
        FileNotFoundError: there is none.
        FileError: it is no file, cannot be opened, or is larger than `most` bytes.
    """
    if why := why_not(path):
        if not os.path.lexists(path):
            raise FileNotFoundError(path)
        raise FileError(f"{path} {why}. Its content was not looked at.")
    try:
        with path.open("rb") as opened:
            content = opened.read(most + 1) if path.stat().st_size <= most else None
    except OSError as error:
        raise FileError(f"{path} {_not_opened(error)}. Its content was not looked at.") from None
    if content is None or len(content) > most:
        raise FileError(
            f"{path} is larger than {most / 1e6:,.0f} MB, more than any such file. Its content was "
            "not looked at; is it the right file?"
        )
    return content


def refuse_holes(path: Path) -> None:
    """Raise if a file is larger than the memory here, and nearly all of it is not on the disk.

    Raises:
        FileError: as after a download that reserved the room and then ended.
    """
    found, room = path.stat(), memory_bytes()
    on_disk = getattr(found, "st_blocks", None)
    if room is None or on_disk is None or found.st_size <= room:
        return
    if on_disk * 512 < HELD * found.st_size:
        raise FileError(
            f"{path} is {found.st_size / 1e9:,.0f} GB long, of which {on_disk * 512 / 1e9:,.3g} GB "
            "were ever written: it is truncated. Copy it again."
        )


def refuse_too_much(where: object, tensors: Iterable[Tensor]) -> None:
    """Raise if tensors that were read take more than the memory here as soon as they are used.

    Raises:
        FileError: with what they would take.
    """
    room, needed = memory_bytes(), sum(t.numel() * t.element_size() for t in tensors)
    if room is not None and needed > room:
        raise FileError(
            f"{where} says that its tensors take {needed / 1e9:,.0f} GB, and this machine has "
            f"{room / 1e9:,.0f} GB. Its content was not loaded."
        )


def memory_bytes() -> int | None:
    """How much memory this machine has; None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _not_opened(error: Exception) -> str:
    return f"cannot be opened: {getattr(error, 'strerror', None) or error}"
