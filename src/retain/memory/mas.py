"""Memory Aware Synapses: Ω from how much the network's output changes with a weight."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import nn

from retain import arguments
from retain.memory.batch_settings import READING, ReadsBatches
from retain.memory.body import Memory
from retain.memory.estimator import Estimator
from retain.parameters import Patterns
from retain.per_sample import PerSample, Score
from retain.per_sample.scores import EachOutput, Norm, SquaredNorm
from retain.samples.outputs import OutputPicker
from retain.samples.owners import PaddingMask, SamplesOf
from retain.samples.reader import Reader

SCORES: dict[str, type[Score]] = {
    "squared-norm": SquaredNorm,
    "norm": Norm,
    "each-output": EachOutput,
}


class MAS(ReadsBatches, Memory):
    """Memory Aware Synapses (Aljundi et al., ECCV 2018): no labels, any trained model, any data.

    Ω = 1/N Σₖ |∂‖F(xₖ; θ)‖² / ∂θ|, the absolute value taken for every sample, and the penalty
    λ Σ Ω (θ − θ*)².

    Args:
        model: the network, of any kind; nothing is put on it.
        strength: λ of eq. 3, without ½.
        output: picks F(x) from what the model returns; by default a tensor as it is, `.logits`,
            or else the first tensor.
        include: names or patterns of the parameters to protect; all by default.
        exclude: names or patterns of parameters to leave free.
        dtype: in which Ω and θ* are kept; by default Ω in single precision, θ* as the weights are.
        device: where Ω and θ* are kept; by default with the weights.
        offload: a folder on a fast disk, where Ω and θ* are kept and read at each step.
        score: what is differentiated: "squared-norm" (the paper), "norm" (not squared), or
            "each-output" (the paper's slower form, Σ_d |∂F_d/∂θ|, one backward pass per output).
        batch_dim: the dimension of the inputs that counts samples.
        samples_of: which sample each row belongs to, where rows are no samples (patches, boxes,
            nodes of graphs): the name of an input that numbers them, or a function of the batch.
        padding_mask: positions that do not count, where no attention_mask says so: the name of an
            input, or a function of the batch, that gives bools [n, T], True at padding.
        check: compare a few samples with the slow truth, once per model.

    Examples:
        >>> import torch, retain
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        >>> memory = retain.MAS(model, strength=2.0)
        >>> memory.observe(torch.randn(32, 4)).consolidate().importance
        Importance(2 parameters, 40 weights, 32 samples)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = memory.attach(optimizer)  # every step is protected until handle.remove()
        >>> memory.penalty().item()  # nothing has moved yet
        0.0
    """

    _arguments: ClassVar[Mapping[str, str]] = {
        "score": "score",
        **READING,
        "check": "_check",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 1.0,
        output: OutputPicker | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        offload: str | os.PathLike[str] | None = None,
        score: Literal["squared-norm", "norm", "each-output"] = "squared-norm",
        batch_dim: int = 0,
        samples_of: SamplesOf = None,
        padding_mask: PaddingMask = None,
        check: bool = True,
    ) -> None:
        arguments.among("score", score, SCORES)
        arguments.function("output", output)
        arguments.flag("check", check)
        super().__init__(
            model,
            strength=strength,
            include=include,
            exclude=exclude,
            dtype=dtype,
            device=device,
            offload=offload,
        )
        self.output = output
        self.score = score
        self._reader = Reader(batch_dim=batch_dim, samples_of=samples_of, padding_mask=padding_mask)
        self._check = check

    def _differentiated(self) -> dict[str, object]:
        return {"output": self.output, "score": self.score}

    def _make_estimator(self, parameters: Mapping[str, nn.Parameter]) -> Estimator:
        return PerSample(
            self.model, parameters, SCORES[self.score](), output=self.output, check=self._check
        )
