"""Tensors and metadata on disk: safetensors with a digest, versioned, atomic, never unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retain import arguments, atomic, readable
from retain.errors import FileError, InputError
from retain.saying import warn
from retain.sharding import any_sharded, whole

VERSION = 2  # 1 had no digest
MARK = "retain"  # the metadata key that makes a safetensors file one of ours
DIGEST = "retain.sha256"  # and the one that says what its bytes were
TORN = 20  # times that a file may be replaced while it is read
OTHER = "its digest does not match its content. Use an intact copy, or make it again."
HASHED = 1 << 26  # elements whose bytes are looked at together


def write(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], header: dict[str, Any]
) -> None:
    """Put `tensors` and `header` into `path`, so that a file is there whole or not at all.

    See `retain.atomic`.

    Raises:
        FileError: the folder is missing or not writable, or the disk is full.
        InputError: a path that is none.
    """
    _refuse_names(tensors)
    said = json.dumps({"kind": kind, "format": VERSION, "torch": torch.__version__, **header})
    with _by_one(tensors) as ready:
        if ready is not None:
            _write(path, ready, {MARK: said, DIGEST: _digest(said, ready)})


def write_weights(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Put weights by name into `path`, a safetensors file as any other, whole or not at all.

    Its metadata hold a digest, which `read_weights` looks at.

    Raises:
        FileError: the folder is missing or not writable, or the disk is full.
        InputError: a path that is none.
    """
    _refuse_names(tensors)
    with _by_one(tensors) as ready:
        if ready is not None:
            _write(path, ready, {"format": "pt", DIGEST: _digest("", ready)})


def _refuse_names(tensors: Mapping[str, Tensor]) -> None:
    """A file names its tensors in UTF-8."""
    try:
        for name in tensors:
            name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"No file can name the tensor {name!a}: it is not UTF-8. Rename the module."
        ) from None


@contextmanager
def _by_one(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor] | None]:
    """The tensors, ready to be written; of sharded ones all ranks give theirs, and one gets them.

    The others get None, and wait until it is done. They hold one whole tensor at a time.
    """
    if not any_sharded(tensors.values()):
        yield _separate(tensors)
        return
    writes, gathered = torch.distributed.get_rank() == 0, {}
    for name, tensor in tensors.items():
        everything = whole(tensor)
        if writes:
            gathered[name] = everything.cpu()
    try:
        yield _separate(gathered) if writes else None
    finally:
        torch.distributed.barrier()


def read(path: str | os.PathLike[str], *kinds: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the header of a file of one of these `kinds`.

    What is read is what was written, to the bit: the digest says so. A file of format 1, which had
    none, is read with a warning.

    Raises:
        FileError: no such file; truncated, or damaged; not one of ours; of another kind; from a
            newer version.
        InputError: a path that is none.
    """
    source = arguments.path("path", path)
    for _ in range(TORN):
        there = _which(source)
        try:
            return _read(source, kinds)
        except FileError:
            # It is opened twice, for its header and for its tensors: another process may have put
            # another one in its place in between.
            if _which(source) == there:
                raise
    return _read(source, kinds)


def _which(path: Path) -> object:
    """Which file is there; one that was written anew is another one."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
    return None


def _read(source: Path, kinds: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        if why := readable.why_not(source):
            raise FileError(f"{source} {why}.")
        readable.refuse_holes(source)
        with safe_open(source, framework="pt") as opened:
            metadata = opened.metadata() or {}
            header = _header(source, metadata, kinds)
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except FileError:
        raise
    except (SafetensorError, OSError, MemoryError, ValueError, RuntimeError, KeyError) as error:
        raise FileError(
            f"{source} cannot be read: {error}. It is truncated, or not a safetensors file."
        ) from error
    _refuse_damage(source, metadata, header, tensors)
    return tensors, header


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file of any program; of ours, they are what was written.

    Raises:
        FileError: a digest that is not that of what it holds; or a file of ours that holds no
            weights, such as a memory.
        SafetensorError: it is none.
    """
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        if MARK in metadata:
            _header(path, metadata, ("weights",))
        expected = metadata.get(DIGEST)
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    if expected not in (None, _digest("", tensors)):
        raise FileError(f"{path} is damaged: {OTHER}")
    return tensors


def _write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    target = arguments.path("path", path)
    try:
        with atomic.replacing(target) as unfinished:
            save_file(dict(tensors), unfinished, metadata=metadata)
    except SafetensorError as error:
        raise atomic.cannot_write(target, error) from error


def _digest(said: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header and over every tensor's name, type, shape and bytes."""
    total = hashlib.sha256(said.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        for part in tensor.reshape(-1).split(HASHED):
            total.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _refuse_damage(
    source: Path, metadata: Mapping[str, str], header: Mapping[str, Any], tensors: dict[str, Tensor]
) -> None:
    expected = metadata.get(DIGEST)
    if expected is None and header["format"] < 2:
        warn(
            f"{source} was written by an older version, without a digest, so damage cannot be "
            "detected. Save it again."
        )
    elif expected != _digest(metadata[MARK], tensors):
        raise FileError(f"{source} is damaged: {OTHER}")


def _header(source: Path, metadata: Mapping[str, str], kinds: tuple[str, ...]) -> dict[str, Any]:
    try:
        header = json.loads(metadata[MARK])
        found, version = header["kind"], header["format"]
        if not isinstance(found, str) or type(version) is not int:
            raise ValueError("kind and format")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FileError(
            f"{source} is a safetensors file, but not one that retain wrote."
        ) from error
    if version > VERSION:
        raise FileError(
            f"{source} has format {version}; this version of retain reads up to {VERSION}. "
            "Upgrade retain."
        )
    if found not in kinds:
        expected = " or ".join(kind if kind == "weights" else _article(kind) for kind in kinds)
        raise FileError(
            f"{source} holds {_article(found)}, not {expected}. {_READERS.get(found, '')}"
        )
    return dict(header)


_READERS = {
    "memory": "Read it with retain.load(path, model).",
    "importance": "Read it with retain.Importance.load(path).",
    "passport": "Read it with retain.load(path, model).",
}


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The format wants contiguous tensors, none of which share memory."""
    seen: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        memory = whole.untyped_storage().data_ptr()
        ready[name] = whole.clone() if memory in seen else whole
        seen.add(memory)
    return ready
