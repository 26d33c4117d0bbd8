"""A comparison of methods on tasks: what is asked, how it is carried out, and what came out."""

from retain.extras import needs

needs("pydantic")

from retain.experiment.config import Config  # noqa: E402
from retain.experiment.record import Run  # noqa: E402
from retain.experiment.results import Results  # noqa: E402
from retain.experiment.run import Interrupted, UnwrittenError, WorkersLostError, run  # noqa: E402

__all__ = ["Config", "Interrupted", "Results", "Run", "UnwrittenError", "WorkersLostError", "run"]
