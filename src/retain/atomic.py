"""Files that are there whole or not at all, whatever interrupts their writing; every writer's way.

What is written is put beside its place first, flushed to the disk, and then renamed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from retain.errors import FileError
from retain.interrupts import uninterrupted

STALE = 24 * 3600  # seconds after which a write that nobody is known to finish is given up
UNFINISHED = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)


class _Write:
    """Is there as long as something is written."""


_writes: WeakValueDictionary[str, _Write] = WeakValueDictionary()  # of this process, by their names


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within it a file to write to, named as `path` is; it takes the place of `path` at the end.

    Whatever was at `path` before survives a write that fails or is interrupted. A new file has the
    permissions that the umask gives, one that is written again keeps its own. A link stays one:
    what it leads to is written. What a write that was killed left beside it is removed.

    Raises:
        FileError: the folder is missing or not writable, the disk is full, or `path` is a folder, a
            device, or a file that may not be written to.
    """
    with _writable(path) as target:
        with _beside(target) as folder:
            unfinished = folder / target.name
            mode = _made(unfinished, target)
            yield unfinished
            unfinished.chmod(mode)  # whoever wrote to it may have made it anew
            _flush(unfinished)
            os.replace(unfinished, target)  # noqa: PTH105  (the same, and tests can see it fail)
        _flush(target.parent)


def try_writing(path: Path) -> None:
    """Find out now whether `path` could be written, and leave what is there.

    Raises:
        FileError: it could not.
    """
    with _writable(path) as target, _beside(target):
        pass


def write(path: Path, content: bytes | str) -> None:
    """Put `content` at `path`, text in UTF-8: see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def _writable(path: Path) -> Iterator[Path]:
    """The file that is written, if it can be; what the system says within it is said in words."""
    target = Path(os.path.realpath(path))
    try:
        _refuse(path, target)
        yield target
    except FileError:
        raise
    except OSError as error:
        raise cannot_write(path, error.strerror or error) from error


def cannot_write(path: Path, why: object) -> FileError:
    """The error of a write that failed."""
    return FileError(f"Cannot write {path}: {why}. What was there is untouched.")


def _refuse(path: Path, target: Path) -> None:
    """What cannot be written is refused in words that say what is in the way."""
    leads = f"it is a link to {target}, and " if path.is_symlink() else ""
    if path.is_symlink() and target.is_symlink():  # realpath ends in what it cannot follow
        raise cannot_write(path, "it is a link that leads to itself")
    if not target.parent.is_dir():
        raise FileError(f"Cannot write {path}: {leads}there is no folder {target.parent}.")
    if target.is_dir():
        raise cannot_write(path, f"{leads}that is a folder, not a file")
    if target.exists() and not target.is_file():
        raise cannot_write(path, f"{leads}that is a device or a pipe, not a file")
    if target.exists() and not os.access(target, os.W_OK):
        raise cannot_write(path, f"{leads}the file may not be written to")


def _made(unfinished: Path, target: Path) -> int:
    """The permissions that it gets: those of the file it replaces, or what a new one has here.

    It is made, so that it has them also while it is written.
    """
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    if target.exists():
        unfinished.chmod(stat.S_IMODE(target.stat().st_mode))
    return stat.S_IMODE(unfinished.stat().st_mode)


def remove_left_over(folder: Path, name: str = "") -> None:
    """Take away what writes that were killed left in `folder`, of files called `name` or of all."""
    for left in folder.glob(f".{glob.escape(name)}*.tmp"):
        if _is_left_over(left):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder for what is not yet whole, in the same file system; what others left is removed."""
    remove_left_over(target.parent, _short(target))
    # Its name says who could still finish it.
    name = f".{_short(target)}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    folder = target.with_name(name)
    _writes[name] = under_way = _Write()  # gone with this call, however it ends
    try:
        folder.mkdir(0o700)
        yield folder
    finally:
        with uninterrupted():
            shutil.rmtree(folder, ignore_errors=True)
            del under_way


def _short(target: Path) -> str:
    """The file's name, as far as there is room for more behind it."""
    return os.fsdecode(os.fsencode(target.name)[:150]).encode("utf-8", "ignore").decode()


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_left_over(path: Path) -> bool:
    """Whether it is an unfinished write, and nobody is there any more who could finish it."""
    writer = UNFINISHED.fullmatch(path.name)
    if writer is None:
        return False
    machine, process = writer.groups()
    if machine == _machine():
        if int(process) == os.getpid():
            return path.name not in _writes  # of a process that had our number before
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            pass
    with contextlib.suppress(OSError):
        newest = max(entry.lstat().st_mtime for entry in (path, *path.glob("*")))
        return time.time() - newest > STALE
    return False


def _flush(path: Path) -> None:
    """Make sure that it is on the disk; Windows cannot do that for a folder."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
