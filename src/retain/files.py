"""Tensors and metadata on disk: safetensors, versioned, written atomically, never unpickled."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retain.errors import FileError
from retain.sharding import any_sharded, whole

VERSION = 1
MARK = "retain"  # the metadata key that makes a safetensors file one of ours


def write(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], header: dict[str, Any]
) -> None:
    """Put `tensors` and `header` into `path`, so that a file is there whole or not at all.

    Written beside it first, flushed to the disk, and then renamed: whatever was at `path` before
    survives a write that fails.

    Raises:
        FileError: the folder is missing or not writable, or the disk is full.
    """
    head = {"kind": kind, "format": VERSION, "torch": torch.__version__, **header}
    _write(path, tensors, {MARK: json.dumps(head)})


def write_weights(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Put weights by name into `path`, a safetensors file as any other, whole or not at all.

    Raises:
        FileError: the folder is missing or not writable, or the disk is full.
    """
    _write(path, tensors, {"format": "pt"})


def _write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    if any_sharded(tensors.values()):  # every rank gives its part, and one writes
        tensors = {name: whole(tensor) for name, tensor in tensors.items()}
        if torch.distributed.get_rank() == 0:
            _write(path, tensors, metadata)
        torch.distributed.barrier()
        return
    target = Path(path).resolve()
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file(_separate(tensors), beside, metadata=metadata)
        _flush(beside)
        os.replace(beside, target)  # noqa: PTH105  (the same, and tests can see it fail)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        raise FileError(f"Cannot write {target}: {error}. What was there is untouched.") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], *kinds: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the header of a file of one of these `kinds`.

    Raises:
        FileError: no such file; truncated; not one of ours; of another kind; from a newer version.
    """
    source = Path(path)
    if not source.is_file():
        what = "is a folder, not a file" if source.is_dir() else "does not exist"
        raise FileError(f"{source} {what}.")
    try:
        with safe_open(source, framework="pt") as opened:
            header = _header(source, opened.metadata() or {}, kinds)
            return {key: opened.get_tensor(key) for key in opened.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError, MemoryError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{source} cannot be read: {error}. It is truncated, or not a safetensors file."
        ) from error


def _header(source: Path, metadata: Mapping[str, str], kinds: tuple[str, ...]) -> dict[str, Any]:
    try:
        header = json.loads(metadata[MARK])
        found, version = str(header["kind"]), int(header["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{source} is a safetensors file, but not one that retain wrote."
        ) from error
    if version > VERSION:
        raise FileError(
            f"{source} has format {version}; this version of retain reads up to {VERSION}. "
            "Upgrade retain."
        )
    if found not in kinds:
        expected = " or ".join(map(_article, kinds))
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


def _flush(path: Path) -> None:
    """Make sure that it is on the disk; Windows cannot do that for a folder."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
