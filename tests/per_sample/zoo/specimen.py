"""A specimen: a small model, the batches it eats, and what is known about its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from retain.samples.batches import Batch
from retain.samples.outputs import first_tensor

Inputs = Callable[[int], Any]  # number of samples → what a data loader would give


@dataclass(frozen=True)
class Specimen:
    """One entry of the zoo.

    Attributes:
        name: of the function that builds it.
        family: the module that function stands in.
        build: makes the model, in float32, from torch's random state.
        inputs: makes the input of n samples, from torch's random state.
        samples: how many samples are usual for it.
        output: picks F(x) from what the model returns.
        batch_dim: the dimension of the inputs that counts samples.
        vanishing: patterns of parameters whose gradient is zero by mathematics, not by arithmetic.
        unused: patterns of parameters that the output does not depend on.
        needs: a package without which it is skipped.
        slow: left out unless slow tests are asked for.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    samples: int = 5
    output: Callable[[Any], Tensor] = first_tensor
    batch_dim: int = 0
    vanishing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    needs: str | None = None
    slow: bool = False

    def model(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        """The model in eval mode, the same one for the same seed."""
        if self.needs:
            pytest.importorskip(self.needs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build().to(dtype)
            _enliven(model)
            _settle(model, self.batch(16, dtype, seed + 1))
        return model.eval()

    def batch(
        self, n: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 1
    ) -> Batch:
        """A batch of `n` samples, the same one for the same seed; its labels count samples."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            raw = self.inputs(n or self.samples)
        cast = tree_map(lambda t: t.to(dtype) if torch.is_floating_point(t) else t, raw)
        batch = Batch.of((cast,), batch_dim=self.batch_dim)
        return replace(batch, labels=torch.arange(batch.samples))

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What is measured: every parameter that is not frozen."""
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def is_vanishing(self, name: str) -> bool:
        """Whether the gradient of this parameter is zero by mathematics."""
        return any(fnmatchcase(name, pattern) for pattern in self.vanishing)

    def is_unused(self, name: str) -> bool:
        """Whether the output does not depend on this parameter."""
        return any(fnmatchcase(name, pattern) for pattern in self.unused)


REGISTRY: dict[str, Specimen] = {}


def specimen(inputs: Inputs, **facts: Any) -> Callable[[Callable[[], nn.Module]], Any]:
    """Registers the function below it under its own name."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        name, family = build.__name__, build.__module__.rpartition(".")[2]
        if name in REGISTRY:
            raise ValueError(
                f"Two specimens are called {name!r}: {REGISTRY[name].family}, {family}."
            )
        REGISTRY[name] = Specimen(name, family, build, inputs, **facts)
        return build

    return register


@torch.no_grad()
def _enliven(model: nn.Module) -> None:
    """Shake what starts constant (biases, scales, layer scales); enlarge what starts tiny."""
    for p in model.parameters():
        if p.min() == p.max():
            p.add_(torch.randn_like(p), alpha=0.2)
        elif p.ndim > 1:
            usual = 0.7 * (p.numel() / len(p)) ** -0.5
            size = p.square().mean().sqrt()
            if size < usual / 2:
                p.mul_(usual / size)


def _settle(model: nn.Module, batch: Batch) -> None:
    """Give running statistics the values of real activations, so that eval mode is not extreme."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        batch.call(model.train())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def vectors(d: int) -> Inputs:
    """[n, d]."""
    return lambda n: 2 * torch.randn(n, d)


def sequences(t: int, d: int) -> Inputs:
    """[n, t, d]."""
    return lambda n: 2 * torch.randn(n, t, d)


def sequences_first(t: int, d: int) -> Inputs:
    """[t, n, d]: the batch is the second dimension."""
    return lambda n: 2 * torch.randn(n, t, d).transpose(0, 1)


def images(c: int, *sides: int) -> Inputs:
    """[n, c, …]: signals, images or volumes."""
    return lambda n: 2 * torch.randn(n, c, *sides)


def tokens(t: int, vocabulary: int) -> Inputs:
    """[n, t] of integers; tokens repeat inside a sample and between samples."""
    return lambda n: torch.randint(vocabulary, (n, t))
