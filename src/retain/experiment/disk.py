"""JSON with a digest, and who owns a folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from retain.errors import ConfigError, FileError

DIGEST = "sha256"  # the last field of a file of JSON: of all the others, as they are laid out
LAID_OUT = b'{\n "'  # how such a file begins, and one that another program wrote anew does not


def signed(content: Mapping[str, Any]) -> bytes:
    """The content as JSON in UTF-8, with its digest."""
    return _laid_out({**content, DIGEST: _digest(content)})


def _laid_out(content: Any) -> bytes:
    """As JSON in UTF-8; names of files that are not UTF-8 are escaped in it."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_laid_out(content)).hexdigest()


class Seal(Enum):
    """Whether a file of JSON is as it was written."""

    WHOLE = "its digest is that of what it holds, or it has none"
    DAMAGED = "it is laid out as it was written, and holds something else"
    REWRITTEN = "another program wrote it anew"


def seal_of(content: Any, text: bytes) -> Seal:
    """What the digest says of a file's content, which is taken out of it."""
    found = content.pop(DIGEST, None) if isinstance(content, dict) else None
    if found is None or found == _digest(content):
        return Seal.WHOLE
    return Seal.DAMAGED if text.startswith(LAID_OUT) else Seal.REWRITTEN


# ---- one writer at a time ----

LOCK = ".lock"
BEAT = 10.0  # seconds between signs of life: the lock file's time of change
SILENT = 60.0  # seconds without one, after which an owner on another host is gone
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class OccupiedError(ConfigError):
    """Another run is writing to the folder."""


class Owner(NamedTuple):
    """Who writes to a folder: a process on a host, and since when (seconds since 1970)."""

    process: int
    host: str
    since: float

    @classmethod
    def of_this_process(cls) -> Owner:
        """The process that asks."""
        return cls(os.getpid(), socket.gethostname(), time.time())

    @classmethod
    def read(cls, text: str) -> Owner | None:
        """The owner that a lock file names; None where it names none."""
        try:
            process, host, since = json.loads(text)
            return cls(int(process), str(host), float(since))
        except (ValueError, TypeError, RecursionError, OverflowError):
            return None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is on another host, of which only the lock file says whether it is alive."""
        return self.host != socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """Whether it is known that the process has ended; of another host that is not known."""
        if self.is_elsewhere:
            return False
        try:
            os.kill(self.process, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            return False
        return False

    def __str__(self) -> str:
        seconds = max(time.time() - self.since, 0)
        age = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
        return f"process {self.process} on {self.host}, for {age}"


class NotOwnedError(FileError):
    """The folder was removed, and what is there now is another run's."""


class OwnedFolder(NamedTuple):
    """A folder that is a run's own, as long as it is the folder that it was."""

    lock: Path
    descriptor: int

    def refuse_another(self) -> None:
        """See that the folder was not removed, and made anew by somebody else, meanwhile.

        Raises:
            NotOwnedError: it was.
        """
        folder = self.lock.parent
        if folder.exists() and not _is_there(self.lock, self.descriptor):
            raise NotOwnedError(
                f"{folder} was moved or removed during the run, and what is there now is not this "
                "run's. Give the same command again, with another --out."
            )


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[OwnedFolder]:
    """Within it no other process, and no other thread, may own the folder.

    The lock is the operating system's, on a file that names the owner, so one that was killed
    leaves nothing behind; where the file system has no locks, the process named there counts. Of
    an owner on another host, to which a lock may not reach, the file's time counts: it is set anew
    every few seconds, and after a minute without that the folder is taken over.

    Raises:
        OccupiedError: another run owns it; the message says which, and for how long.
        OSError: no lock file can be made there.
    """
    path = folder / LOCK
    descriptor = _locked(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(Owner.of_this_process()).encode(), 0)
        os.fsync(descriptor)  # workers on other machines know the folder by it
        with _signs_of_life(path):
            yield OwnedFolder(path, descriptor)
    finally:
        with contextlib.suppress(OSError):
            if _is_there(path, descriptor):
                path.unlink()
        os.close(descriptor)


@contextlib.contextmanager
def _signs_of_life(path: Path) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_alive_elsewhere(descriptor: int, owner: Owner | None) -> bool:
    """Whether an owner on another host gave a sign of life a short time ago."""
    if owner is None or not owner.is_elsewhere:
        return False
    return time.time() - os.fstat(descriptor).st_mtime < SILENT


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            owner = Owner.read(os.pread(descriptor, 1000, 0).decode("utf-8", "replace"))
            alive = _is_alive_elsewhere(descriptor, owner)
            # A child of a killed run may hold its lock for a while; the run itself is gone.
            if alive or (not _taken(descriptor, owner) and (owner is None or not owner.is_gone)):
                raise OccupiedError(
                    f"Another run is writing to {path.parent} ({owner or 'of unknown age'}). Wait "
                    "until it is done, or choose another folder with --out. If that run no longer "
                    f"exists, remove {path}{', or wait a minute' * alive}."
                )
            if _is_there(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner took it away meanwhile


def _taken(descriptor: int, owner: Owner | None) -> bool:
    """Whether the lock is ours now."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
            raise
        if owner is not None and owner.is_elsewhere:
            return not _is_alive_elsewhere(descriptor, owner)
        return owner is None or owner.is_gone
    return True


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False
