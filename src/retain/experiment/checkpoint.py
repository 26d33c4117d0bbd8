"""Where a job stands on disk between two of its tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from retain import files
from retain.errors import FileError
from retain.experiment.job import Job
from retain.experiment.record import Run
from retain.experiment.run_folder import CHECKPOINTS
from retain.parameters import is_finite

KIND = "checkpoint"
SUFFIX = ".safetensors"
DAMAGED = ".damaged"


class Standing(NamedTuple):
    """A job after some of its tasks."""

    run: Run
    network: dict[str, Tensor]
    method: dict[str, Tensor]


class Checkpoint:
    """The file of one job. It is gone once the job is done."""

    def __init__(self, folder: Path, job: Job, *, before: Callable[[], None] | None = None) -> None:
        """The checkpoint of `job` in the folder of its run; `before` is called before a write."""
        self.job = job
        self.before = before
        self.path = folder / CHECKPOINTS / f"{job.label}{SUFFIX}"

    def save(self, standing: Standing) -> None:
        """Write where the job stands, atomically.

        Raises:
            FileError: it cannot be written; the last one is still there.
        """
        if self.before is not None:
            self.before()
        tensors = {f"network.{name}": tensor for name, tensor in standing.network.items()}
        tensors |= {f"method.{name}": tensor for name, tensor in standing.method.items()}
        files.write(self.path, KIND, tensors, {"run": json.dumps(standing.run.to_json())})

    def load(self) -> Standing | None:
        """Where the job stands, or None if no task of it was finished.

        Raises:
            FileError: the file cannot be read, is not as it was written, or is of another job.
        """
        if not self.path.exists():
            return None
        tensors, header = files.read(self.path, KIND)
        record: Any = header.get("run")
        try:
            run = Run.from_json(json.loads(record))
        except (TypeError, ValueError, RecursionError) as error:
            raise FileError(f"{self.path} holds no record of a run: {error}.") from None
        if not self.job.is_of(run) or not 0 < len(run.accuracy) <= len(run.tasks):
            raise FileError(f"{self.path} is of another job: {run.method}, seed {run.seed}.")
        wrong = [name for name, tensor in tensors.items() if not is_finite(tensor)]
        if wrong:
            raise FileError(f"{self.path} holds NaN or infinity in {', '.join(sorted(wrong))}.")
        return Standing(run, _under(tensors, "network."), _under(tensors, "method."))

    def set_aside(self) -> Path:
        """Where the file, which cannot be used, is now."""
        aside = self.path.with_suffix(DAMAGED)
        self.path.replace(aside)
        return aside

    def remove(self) -> None:
        """Take the file away."""
        self.path.unlink(missing_ok=True)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
