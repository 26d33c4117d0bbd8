"""Memory Aware Synapses, locally: Ω from what each layer does, by forward passes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from retain.local_rule.rule import LocalRule
from retain.memory.body import Memory
from retain.memory.running import Running
from retain.parameters import Patterns


class LocalMAS(Memory):
    """l-MAS (Aljundi et al., ECCV 2018): MAS with each layer's own output, by forward passes alone.

    Ω = 1/N Σₖ |∂‖y_l(xₖ)‖² / ∂θ| with y_l the layer's output after its non-linearity and its input
    held constant; after ReLU that is 2 · y_i · y_j, Hebb's rule. Linear and convolutional layers
    have one; other parameters, and heads, get no importance and stay free. The penalty is
    λ Σ Ω (θ − θ*)².

    Args:
        model: the network; nothing is put on it.
        strength: λ, without ½.
        include: names or patterns of the parameters to protect; all by default.
        exclude: names or patterns of parameters to leave free.
        dtype: in which Ω and θ* are kept; by default Ω in single precision, θ* as the weights are.
        device: where Ω and θ* are kept; by default with the weights.
        batch_dim: the dimension of the inputs that counts samples.
    """

    _arguments: ClassVar[Mapping[str, str]] = {"batch_dim": "_batch_dim"}

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 1.0,
        include: Patterns = None,
        exclude: Patterns = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        batch_dim: int = 0,
    ) -> None:
        super().__init__(
            model, strength=strength, include=include, exclude=exclude, dtype=dtype, device=device
        )
        self._batch_dim = batch_dim
        self._served = model

    @contextmanager
    def observing(self, *, every: int = 1) -> Iterator[Self]:
        """Observe the user's own calls of the model while they serve: `with memory.observing(): …`.

        The model answers as ever, in its own mode, also under `torch.no_grad()` and
        `torch.inference_mode()`; one call in `every` is observed, the others cost nothing.

        Raises:
            InputError: `every` is not a positive whole number.
            ModelError: the model changed since the first sample; call `consolidate()` before that.
        """
        parameters = self.selection.trainable(self.model)
        if self._state.running is not None:
            self._state.running.refuse_changed(parameters)
        rule = cast(LocalRule, self._estimator(parameters))

        def commit(sums: Mapping[str, Tensor], samples: int) -> None:
            running = self._state.running or Running()
            running.add(sums, samples)
            running.routes = dict(rule.routes)
            self._state = replace(self._state, running=running)

        with rule.listening(commit, every=every):
            yield self

    def _make_estimator(self, parameters: Mapping[str, nn.Parameter]) -> LocalRule:
        return LocalRule(self.model, parameters, batch_dim=self._batch_dim, served=self._served)
