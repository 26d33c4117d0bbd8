"""Where a job stands after a task, on disk: the network, what the method keeps, and its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from retain import files
from retain.errors import FileError
from retain.experiment.folder import CHECKPOINTS
from retain.experiment.plan import Job
from retain.experiment.results import Run

KIND = "checkpoint"


class Standing(NamedTuple):
    """A job after some of its tasks."""

    run: Run
    network: dict[str, Tensor]
    method: dict[str, Tensor]


class Checkpoint:
    """The file of one job. It is gone once the job is done."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.path = folder / CHECKPOINTS / f"{job.label}.safetensors"

    def save(self, standing: Standing) -> None:
        """Write where the job stands, atomically.

        Raises:
            FileError: it cannot be written; the last one is still there.
        """
        tensors = {f"network.{name}": tensor for name, tensor in standing.network.items()}
        tensors |= {f"method.{name}": tensor for name, tensor in standing.method.items()}
        files.write(self.path, KIND, tensors, {"run": json.dumps(standing.run.to_json())})

    def load(self) -> Standing | None:
        """Where the job stands, or None if no task of it was finished.

        Raises:
            FileError: the file cannot be read.
        """
        if not self.path.exists():
            return None
        tensors, header = files.read(self.path, KIND)
        try:
            run = Run.from_json(json.loads(header["run"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{self.path} holds no record of a run: {error}.") from None
        return Standing(run, _under(tensors, "network."), _under(tensors, "method."))

    def remove(self) -> None:
        """Take the file away."""
        self.path.unlink(missing_ok=True)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
