"""How many bytes a memory takes, told before they are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retain.memory.storage import Storage
from retain.parameters import summed_in
from retain.saying import warn
from retain.sharding import local

LARGE = 1 << 26  # bytes: what is smaller is not worth a question to the system
SUMS = 2  # as large as the weights while observing: of the batch, and of all batches


@dataclass(frozen=True)
class Footprint:
    """Bytes that a memory of a model takes, on this process; prints as a table.

    Attributes:
        weights: of the protected parameters themselves.
        observing: of the sums while data are observed, until `consolidate()`; activations, of one
            forward and one backward pass, come on top.
        importance: of Ω.
        anchor: of θ*.
        on_disk: whether Ω and θ* are there (`offload=`), and only what is looked at is in memory.

    Examples:
        >>> footprint = retain.MAS(model, dtype=torch.bfloat16).footprint()  # a Footprint
        >>> footprint.weights, footprint.importance
        (300, 150)
    """

    weights: int
    observing: int
    importance: int
    anchor: int
    on_disk: bool

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], storage: Storage) -> Footprint:
        """What a memory of these parameters takes, if it is kept like that."""
        here = [local(p.detach()) for p in parameters.values()]
        kept = [storage.bytes_of(p) for p in here]
        return cls(
            weights=sum(p.nbytes for p in here),
            observing=SUMS * sum(p.numel() * summed_in(p.dtype).itemsize for p in here),
            importance=sum(omega for omega, _star in kept),
            anchor=sum(star for _omega, star in kept),
            on_disk=storage.folder is not None,
        )

    @property
    def kept(self) -> int:
        """Bytes of Ω and θ* together, wherever they are.

        Examples:
            >>> retain.MAS(model).footprint().kept
            600
        """
        return self.importance + self.anchor

    def __str__(self) -> str:
        where = " (on disk)" if self.on_disk else ""
        lines = [
            ("the protected weights", self.weights),
            ("sums while observing", self.observing),
            (f"Ω{where}", self.importance),
            (f"θ*{where}", self.anchor),
        ]
        return "\n".join(f"{what:<24} {said(size):>10}" for what, size in lines)


def said(size: float) -> str:
    """Bytes in words: 1.5 GB."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"


def warn_if_short(parameters: Mapping[str, Tensor], storage: Storage) -> None:
    """Say so before memory is taken, if what observing and consolidating take is not there."""
    footprint = Footprint.of(parameters, storage)
    if footprint.observing < LARGE:
        return
    device = next(iter(parameters.values())).device
    # Ω and θ* are made one parameter after another while the sums are still there.
    beside = not footprint.on_disk and storage.place in {None, device}
    needed = footprint.observing + (footprint.kept if beside else 0)
    room = free_bytes(device)
    if room is not None and needed > room:
        warn(
            f"This takes {said(needed)} on {device.type} ({said(footprint.observing)} for sums "
            f"while observing, then {said(footprint.importance)} for Ω and "
            f"{said(footprint.anchor)} for θ*), and {said(room)} are free. Observe some layers at "
            "a time (include=…), and keep less: dtype=torch.bfloat16 or torch.float8_e5m2, "
            "offload=FOLDER. memory.footprint() tells what each takes."
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had; None where the system does not say."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        free = 1024 * int(line.split()[1])
    except (OSError, StopIteration, ValueError):
        return None
    return min(free, _of_the_container() or free)


def _of_the_container() -> int | None:
    """What a container's limit leaves, if there is one (control groups, version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = sum(int(one.split()[1]) for one in lines if one.startswith("inactive_file "))
    except (OSError, ValueError):
        return None
    return max(0, limit - used + cached)
