"""Elastic Weight Consolidation: Ω is the diagonal of the Fisher information."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from retain import arguments
from retain.errors import InputError
from retain.importance import Importance
from retain.memory.batch_settings import READING, ReadsBatches
from retain.memory.body import Memory
from retain.memory.consolidated import Consolidated, Merge
from retain.memory.estimator import Estimator
from retain.memory.state import Tensors
from retain.parameters import Patterns
from retain.per_sample import PerSample, Score
from retain.per_sample.scores import Empirical, Exact, Sampled
from retain.samples.outputs import OutputPicker
from retain.samples.owners import PaddingMask, SamplesOf
from retain.samples.reader import Reader

FISHERS = ("sampled", "exact", "empirical")


class EWC(ReadsBatches, Memory):
    """Elastic Weight Consolidation (Kirkpatrick et al., PNAS 2017), for models that give logits.

    F = 1/N Σₖ (∂ log p(y|xₖ) / ∂θ)², squared for every sample, and the penalty λ/2 Σ F (θ − θ*)².

    Args:
        model: the network, of any kind; nothing is put on it. Its output holds logits, [n, classes]
            or [n, positions, classes].
        strength: λ, of which the penalty takes half.
        output: picks the logits from what the model returns.
        include: names or patterns of the parameters to protect; all by default.
        exclude: names or patterns of parameters to leave free.
        dtype: in which F and θ* are kept; by default F in single precision, θ* as the weights are.
        device: where F and θ* are kept; by default with the weights.
        offload: a folder on a fast disk, where F and θ* are kept and read at each step.
        fisher: where y comes from: "sampled" (drawn from the model, once per sample), "exact" (the
            expectation over all classes, a backward pass for each), or "empirical" (the labels of
            the batches).
        online: keep one F and the latest θ* (Schwarz et al., ICML 2018; `consolidate(merge=γ)` lets
            the old F fade), in place of one (F, θ*) per task.
        seed: of the draws of "sampled".
        batch_dim: the dimension of the inputs that counts samples.
        samples_of: which sample each row belongs to, where rows are no samples (patches, boxes,
            nodes of graphs): the name of an input that numbers them, or a function of the batch.
        padding_mask: positions that do not count, where no attention_mask says so: the name of an
            input, or a function of the batch, that gives bools [n, T], True at padding.
        check: compare a few samples with the slow truth, once per model.

    Examples:
        >>> import torch, retain
        >>> model = torch.nn.Linear(4, 3)
        >>> inputs, labels = torch.randn(32, 4), torch.randint(3, (32,))
        >>> memory = retain.EWC(model, fisher="empirical")
        >>> memory.observe([(inputs, labels)]).consolidate().importance
        Importance(2 parameters, 15 weights, 32 samples)
    """

    coefficient: ClassVar[float] = 0.5
    _arguments: ClassVar[Mapping[str, str]] = {
        "fisher": "fisher",
        "online": "online",
        "seed": "seed",
        **READING,
        "check": "_check",
    }
    _further: ClassVar[tuple[str, ...]] = ("_generator",)

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
        fisher: Literal["sampled", "exact", "empirical"] = "sampled",
        online: bool = False,
        seed: int = 0,
        batch_dim: int = 0,
        samples_of: SamplesOf = None,
        padding_mask: PaddingMask = None,
        check: bool = True,
    ) -> None:
        arguments.among("fisher", fisher, FISHERS)
        arguments.function("output", output)
        arguments.flag("online", online)
        arguments.whole("seed", seed)
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
        self.fisher = fisher
        self.online = online
        self.seed = seed
        self._check = check
        self._reader = Reader(batch_dim=batch_dim, samples_of=samples_of, padding_mask=padding_mask)
        self._generator = torch.Generator().manual_seed(seed)

    def _differentiated(self) -> dict[str, object]:
        return {"output": self.output, "fisher": self.fisher}

    def _make_estimator(self, parameters: Mapping[str, nn.Parameter]) -> Estimator:
        scores: dict[str, Score] = {
            "sampled": Sampled(self._generator),
            "exact": Exact(),
            "empirical": Empirical(),
        }
        score = scores[self.fisher]
        return PerSample(
            self.model, parameters, score, power=2, output=self.output, check=self._check
        )

    def _joined(self, observed: Importance, merge: Merge) -> tuple[Consolidated, ...]:
        if self.online:
            return super()._joined(observed, merge)
        if merge != "sum":
            raise InputError(
                f"merge={merge!r} needs EWC(online=True); otherwise each task keeps its own F."
            )
        parameters = self.selection.matching(self.model)
        term = self.storage.term(observed, parameters, anchor={})
        return (*self._state.terms, term)

    def _more_tensors(self) -> Tensors:
        return {"generator": {"": self._generator.get_state()}}

    def _take_more(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._generator.set_state(tensors["generator"][""].cpu())
