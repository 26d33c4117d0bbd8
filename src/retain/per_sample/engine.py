"""Σₖ |∂sₖ/∂θ|ᵖ for any model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from retain.batches import Batch
from retain.outputs import OutputPicker, checked, first_tensor
from retain.per_sample.reference import sums_by_loop
from retain.per_sample.score import Score


class PerSample:
    """Computes Σₖ |∂sₖ/∂θ|ᵖ batch after batch; remembers what it learned about the model."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        score: Score,
        *,
        power: int = 1,
        output: OutputPicker | None = None,
        check: bool = True,
    ) -> None:
        self.model = model
        self.parameters = dict(parameters)
        self.score = score
        self.power = power
        self.output = output or first_tensor
        self.check = check
        self.routes: dict[str, str] = {}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The sums over the samples of `batch`; call it inside `borrowed(model)`."""
        out = checked(self.output(batch.call(self.model)), batch.samples)
        target = self.score.target(out.detach(), batch)
        self.routes = dict.fromkeys(self.parameters, "loop")
        return sums_by_loop(
            self.model, batch, self.parameters, self.score,
            power=self.power, output=self.output, target=target,
        )
