"""How Ω and θ* are kept: in which type, and where."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from retain import arguments
from retain.errors import FileError, NonFiniteError
from retain.importance import Importance
from retain.memory.consolidated import Consolidated
from retain.parameters import snapshot, summed_in
from retain.sharding import like, local, whole

EIGHT = torch.float8_e5m2  # 2 bits of precision, and a range of 1 : 3.7e9
LARGEST = torch.finfo(EIGHT).max
TINY = torch.finfo(torch.float32).tiny
SMALL = 1 << 16  # bytes below which a file is not worth its while


@dataclass(frozen=True)
class Storage:
    """In which type and where Ω and θ* are kept.

    Attributes:
        dtype: None for Ω in single precision and θ* as the weights are. In 8 bits only matrices of
            Ω are kept: θ* must be known well, since the penalty is about the distance from it.
        device: None for where the weights are.
        folder: where they are kept on disk, and read at each step.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    folder: Path | None = None

    def settings(self) -> dict[str, str | None]:
        """Type and device as a file can hold them; a folder is a matter of this machine."""
        dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return {"dtype": dtype, "device": None if self.device is None else str(self.device)}

    @property
    def place(self) -> torch.device | None:
        """Where tensors are that are kept; None for where the weights are."""
        return self.device if self.folder is None else torch.device("cpu")

    @property
    def _plain(self) -> torch.dtype | None:
        return None if self.dtype == EIGHT else self.dtype

    def bytes_of(self, weight: Tensor) -> tuple[int, int]:
        """What Ω and θ* of a weight take."""
        single = summed_in(weight.dtype).itemsize
        eight = self.dtype == EIGHT and weight.ndim > 1
        omega = 1 if eight else self._plain.itemsize if self._plain else single
        star = self._plain.itemsize if self._plain else weight.element_size()
        return omega * weight.numel(), star * weight.numel()

    def term(
        self,
        means: Importance,
        parameters: Mapping[str, nn.Parameter],
        anchor: Mapping[str, Tensor],
    ) -> Consolidated:
        """Ω = `means`, anchored to `parameters` as they are now; `anchor` for those not among them.

        `means` are asked for one after another.

        Raises:
            NonFiniteError: an importance that is not finite, or that the type cannot hold.
            FileError: the folder cannot be written to.
        """
        importance, stars = {}, {}
        units: dict[str, float] = {}
        bad: dict[str, bool] = {}  # whether it was finite before
        for name in means:
            given = means[name]
            omega, unit = self._kept(given)
            if not torch.isfinite(local(omega)).all():
                bad[name] = bool(torch.isfinite(local(given)).all())
            if unit != 1:
                units[name] = unit
            star = (
                snapshot(parameters[name], self._plain, self.place)
                if name in parameters
                else anchor[name]
            )
            importance[name], stars[name] = self._put(omega, star)
        if bad:
            raise NonFiniteError(
                f"The importance of {', '.join(bad)} "
                + (
                    f"does not fit into {self.dtype}. Use dtype=torch.bfloat16, which has the "
                    "range of single precision."
                    if all(bad.values())
                    else "is NaN or infinite. Did training diverge?"
                )
            )
        said = means.samples, means.squared_norm, means.precisions
        return Consolidated(importance, stars, *said, units)

    def put(self, terms: tuple[Consolidated, ...]) -> tuple[Consolidated, ...]:
        """The same terms, in the folder if there is one."""
        if self.folder is None:
            return terms
        found = []
        for term in terms:
            pairs = {n: self._put(o, term.anchor[n]) for n, o in term.importance.items()}
            importance, anchor = ({n: pair[i] for n, pair in pairs.items()} for i in (0, 1))
            found.append(replace(term, importance=importance, anchor=anchor))
        return tuple(found)

    def _kept(self, omega: Tensor) -> tuple[Tensor, float]:
        """Ω in the type in which it is kept, and its unit."""
        if self.dtype != EIGHT or omega.ndim < 2:
            return omega.to(self.place, self._plain), 1.0
        largest = float(whole(omega.max())) if omega.numel() else 0.0
        # Ω = unit · importance, with the largest Ω at the end of the range; NaN stays NaN
        unit = TINY if largest < LARGEST * TINY else largest / LARGEST
        return (omega / unit).to(EIGHT).to(self.place), unit

    def _put(self, omega: Tensor, star: Tensor) -> tuple[Tensor, Tensor]:
        """Ω and θ* of a parameter, in the folder if there is one and they are not small.

        They are mapped into memory from a file that has no name any more: the system reads what is
        looked at and forgets it when memory is short, and nothing is left behind.
        """
        if self.folder is None or local(star).nbytes < SMALL:
            return omega, star
        path = self.folder / f".retain-{secrets.token_hex(8)}.safetensors"
        tensors = {"importance": local(omega), "anchor": local(star)}
        try:
            save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path)
            with safe_open(path, framework="pt") as opened:
                importance, anchor = (opened.get_tensor(n) for n in tensors)
        except (OSError, SafetensorError) as error:
            raise FileError(
                f"Ω and θ* cannot be kept in {self.folder}: {error}. Choose a folder with room."
            ) from error
        finally:
            with suppress(OSError):  # Windows keeps files that are mapped
                path.unlink(missing_ok=True)
        return like(importance, omega), like(anchor, star)


def folder_of(given: str | os.PathLike[str] | None) -> Path | None:
    """The folder, if it can be written to.

    Raises:
        InputError: no path.
        FileError: no such folder, or one that cannot be written to.
    """
    if given is None:
        return None
    path = arguments.path("offload", given, of="a folder")
    if not path.is_dir() or not os.access(path, os.W_OK):
        what = "cannot be written to" if path.is_dir() else "is no folder"
        raise FileError(
            f"offload={str(path)!r} {what}. Give a folder that is there, on a fast disk."
        )
    return path.resolve()
