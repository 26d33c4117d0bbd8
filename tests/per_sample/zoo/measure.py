"""How far the engine is from the slow truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from retain.borrowed import borrowed
from retain.per_sample import PerSample, Score, sums_by_loop
from retain.per_sample.scores import SquaredNorm
from retain.samples.batches import Batch
from retain.samples.outputs import output_of

from .specimen import Inputs, Specimen

TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4}
# A gradient that is zero by mathematics is rounding noise; it is measured against this share of
# the largest mean importance in the model.
FLOOR = 1e-2


class LogLikelihood:
    """sₖ = log softmax(F(xₖ))[label], what the Fisher information of EWC squares."""

    def target(self, output: Tensor, batch: Batch) -> Tensor:
        """[n]: the label, wrapped into the number of outputs."""
        assert batch.labels is not None
        return batch.labels.to(output.device) % output[0].numel()

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """[n]: one log-likelihood per sample."""
        return output.reshape(len(output), -1).log_softmax(1).gather(1, target[:, None]).squeeze(1)


SCORES: dict[int, Score] = {1: SquaredNorm(), 2: LogLikelihood()}


@dataclass(frozen=True)
class Centred:
    """F(x) minus its mean over some other data, as an `output=` that a user might give.

    Otherwise a bias near the output gives every sample's gradient the same sign, and then a sum
    of absolute values cannot be told from the absolute value of a sum.
    """

    pick: Callable[[Any], Tensor]
    centre: Tensor  # [classes], or a number when F(x) is one number per sample

    @classmethod
    def on(cls, specimen: Specimen, model: nn.Module, dtype: torch.dtype) -> Centred:
        """The specimen's own output, centred on a batch that no test uses."""
        with borrowed(model), torch.no_grad():
            out = specimen.output(specimen.batch(None, dtype, seed=2).call(model))
        return cls(specimen.output, out.flatten(0, -2).mean(0) if out.ndim > 1 else out.mean())

    def __call__(self, returned: Any) -> Tensor:
        """[n, …]."""
        return self.pick(returned) - self.centre


@dataclass
class Watched:
    """A model of the zoo with an engine on it; `engine` and `truth` answer for the same batch."""

    specimen: Specimen
    dtype: torch.dtype = torch.float64
    power: int = 1
    score: Score | None = None
    check: bool = True
    model: nn.Module = field(init=False)
    per_sample: PerSample = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.specimen.model(self.dtype)
        self.output = Centred.on(self.specimen, self.model, self.dtype)
        self.score = self.score or SCORES[self.power]
        self.parameters = self.specimen.parameters(self.model)
        self.per_sample = PerSample(
            self.model, self.parameters, self.score,
            power=self.power, output=self.output, check=self.check,
        )  # fmt: skip

    def engine(self, batch: Batch) -> dict[str, Tensor]:
        """Σₖ|gₖ|ᵖ by the engine."""
        with borrowed(self.model):
            return {name: t.clone() for name, t in self.per_sample(batch).items()}

    def truth(self, batch: Batch) -> dict[str, Tensor]:
        """Σₖ|gₖ|ᵖ, one sample at a time."""
        with borrowed(self.model):
            with torch.no_grad():
                out = output_of(self.model, batch, self.output)
            return sums_by_loop(
                self.model, batch, self.parameters, self.score,
                power=self.power, output=self.output,
                target=self.score.target(out, batch),
            )  # fmt: skip

    def truth_of_one_graph(self, batch: Batch) -> dict[str, Tensor]:
        """Σₖ|gₖ|ᵖ, a backward for each sample through one forward of the whole batch."""
        sums = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        with borrowed(self.model):
            out = output_of(self.model, batch, self.output)
            scores = self.score(out, self.score.target(out.detach(), batch))
            leaves = list(self.parameters.values())
            for s in scores.reshape(-1):
                found = torch.autograd.grad(s, leaves, retain_graph=True, allow_unused=True)
                for total, g in zip(sums.values(), found, strict=True):
                    if g is not None:
                        total += g.to_dense().abs() ** self.power
        return sums

    def power_of_the_sum(self, batch: Batch) -> dict[str, Tensor | None]:
        """|Σₖ gₖ|, what one ordinary backward pass gives; None for what is not used."""
        with borrowed(self.model):
            score = self.score(output_of(self.model, batch, self.output), None).sum()
            leaves = list(self.parameters.values())
            gradients = torch.autograd.grad(score, leaves, allow_unused=True)
        return {
            name: None if g is None else g.to_dense().abs()
            for name, g in zip(self.parameters, gradients, strict=True)
        }

    def errors(self, batch: Batch) -> dict[str, float]:
        """Relative ℓ2 error of every parameter on this batch.

        In single precision an activation that is zero but for rounding may pass a ReLU in a batch
        and not alone, and every gradient below it then differs by as much. Where the two ways of
        the truth disagree, either may be met.
        """
        found, truth = self.engine(batch), self.truth(batch)
        errors = relative_errors(found, truth, self.specimen)
        if self.dtype == torch.float64 or max(errors.values()) <= TOLERANCE[self.dtype]:
            return errors
        others = relative_errors(found, self.truth_of_one_graph(batch), self.specimen)
        return {name: min(error, others[name]) for name, error in errors.items()}

    def complaint(self, batch: Batch) -> str:
        """What is wrong on this batch, parameter by parameter; empty when all is exact."""
        tolerance = TOLERANCE[self.dtype]
        wrong = {name: e for name, e in self.errors(batch).items() if not e <= tolerance}
        lines = [
            f"  {name}: {error:.2e} by {self.per_sample.routes.get(name, 'no route')!r}"
            for name, error in wrong.items()
        ]
        head = f"{self.specimen.name}, {self.dtype}, power {self.power}, n = {batch.samples}:"
        return "\n".join([head, *lines]) if lines else ""


def relative_errors(
    found: Mapping[str, Tensor], truth: Mapping[str, Tensor], specimen: Specimen
) -> dict[str, float]:
    """‖found − truth‖ / ‖truth‖ per parameter; infinite where one is missing or misshapen."""
    largest = max(float(t.mean()) for t in truth.values() if t.numel())
    return {
        name: _relative(found.get(name), t, FLOOR * largest if specimen.is_vanishing(name) else 0.0)
        for name, t in truth.items()
    }


def _relative(found: Tensor | None, truth: Tensor, floor: float) -> float:
    if found is None or found.shape != truth.shape or found.dtype != truth.dtype:
        return math.inf
    difference = float((found - truth).double().norm())
    size = max(float(truth.double().norm()), floor * math.sqrt(truth.numel()))
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf


def one_off(model: nn.Module, inputs: Inputs, **facts: Any) -> Watched:
    """A model that is of no use outside of one test, watched."""
    return Watched(Specimen("one_off", "", lambda: model, inputs, **facts))


def batch_of(x: Tensor) -> Batch:
    """A batch of given samples, in float64; its labels count samples."""
    return replace(
        Batch.of((x.double() if x.is_floating_point() else x,)), labels=torch.arange(len(x))
    )
