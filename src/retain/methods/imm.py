"""IMM, incremental moment matching (Lee et al. 2017): one network made of every task's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

import retain
from retain.errors import ConfigError
from retain.methods.l2_sp import near, squared_distance
from retain.methods.method import Form, Method, Setting, numbered, under
from retain.methods.start import shared_weights
from retain.models import TaskNetwork
from retain.parameters import Weights
from retain.ranges import NotNegative, Share
from retain.tasks import Minibatch, TaskSequence

EPSILON = 1e-8  # where no task's Fisher says anything, the mode is the mean
DROPPED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # weights [outputs, …]


@dataclass(frozen=True)
class IMMOptions:
    """Defaults of IMM.

    Attributes:
        strength: λ of L2-transfer, which holds a task's weights near the last task's; 0 is none.
            The merge gives the task at hand only its share of the weights: where they went far,
            it is learned badly.
        form: of L2-transfer's penalty.
        weight_transfer: start a task from the last one's weights, or else from the first weights.
        drop_transfer: the part of the nodes that fall back to the last task's weights in a step.
        alpha: α, how much each task counts in the merge; () is all the same.
    """

    strength: NotNegative = 1.0
    form: Form = "adaptive"
    weight_transfer: bool = True
    drop_transfer: Share = 0.0
    alpha: tuple[NotNegative, ...] = ()


@dataclass(frozen=True)
class IMMModeOptions(IMMOptions):
    """Defaults of mode-IMM, beside those of mean-IMM.

    Attributes:
        fisher: how the diagonal Fisher is estimated.
    """

    fisher: Literal["sampled", "exact", "empirical"] = "sampled"


def merged_mean(models: Sequence[Weights], alpha: Sequence[float]) -> dict[str, Tensor]:
    """θ = Σ α_t θ_t, with α summing to one   (IMM, eq. 4)."""
    share = [a / sum(alpha) for a in alpha]
    return {name: sum_of(a * w[name] for a, w in zip(share, models)) for name in models[0]}


def merged_mode(
    models: Sequence[Weights], fishers: Sequence[Weights], alpha: Sequence[float]
) -> dict[str, Tensor]:
    """θ = Σ α_t F_t θ_t / Σ α_t F_t, and the mean where there is no F   (IMM, eq. 8)."""
    merged = merged_mean(models, alpha)
    for name in fishers[0]:
        weights = [a * (F[name] + EPSILON) for a, F in zip(alpha, fishers)]
        merged[name] = sum_of(f * w[name] for f, w in zip(weights, models)) / sum_of(weights)
    return merged


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one or more tensors."""
    first, *others = terms
    return sum(others, start=first)


IMMOptionsT = TypeVar("IMMOptionsT", bound=IMMOptions)


class IMM(Method[IMMOptionsT]):
    """Each task is learned on its own weights; what is measured is the merge of all of them.

    Heads are not merged: each belongs to its task.
    """

    holds_weights = True
    merges = True

    def __init__(self, network: TaskNetwork, options: IMMOptionsT, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self.models: list[Weights] = []
        self.first: Weights = (
            {} if options.weight_transfer else shared_weights(self.network, self.setting)
        )

    def _load(self, weights: Weights) -> None:
        self.network.load_state_dict(dict(weights), strict=False)

    def begin(self, index: int, sequence: TaskSequence) -> None:
        """Go back from the merge to the last task's own weights, or to the first weights."""
        alpha = self.options.alpha
        if alpha and len(alpha) != len(sequence.tasks):
            raise ConfigError(
                f"{self.name}.alpha has {len(alpha)} ratios for {len(sequence.tasks)} tasks."
            )
        if alpha and not alpha[0]:
            raise ConfigError(
                f"{self.name}.alpha begins with 0; after the first task there is nothing to merge."
            )
        if self.models:
            self._load(self.models[-1] if self.options.weight_transfer else self.first)

    def protecting(self, index: int, optimizer: Optimizer) -> AbstractContextManager[Any]:
        """L2-transfer: λ ‖θ − θ_{t−1}‖²   (IMM, section 3.3)."""
        if not self.models or not self.options.strength:
            return nullcontext()
        return near(
            self.network,
            self.models[-1],
            optimizer,
            form=self.options.form,
            strength=self.options.strength,
        )

    def loss(self, batch: Minibatch) -> Tensor:
        """Cross-entropy, with drop-transfer of the network with some nodes set back."""
        if not self.models or not self.options.drop_transfer:
            return super().loss(batch)
        logits = functional_call(self.network, self._with_drop_transfer(), (batch.inputs,))
        return F.cross_entropy(logits, batch.labels)

    def _with_drop_transfer(self) -> dict[str, Tensor]:
        """θ_{t−1} for a node that is dropped, θ_{t−1} + (θ − θ_{t−1}) / (1 − p) for the others."""
        p, last = self.options.drop_transfer, self.models[-1]
        changed = {}
        for path, module in self.network.named_modules():
            if not isinstance(module, DROPPED) or f"{path}.weight" not in last:
                continue
            # m/(1−p), m ~ Bernoulli(1−p), one per output node
            keep = (torch.rand(len(module.weight), device=module.weight.device) >= p) / (1 - p)
            for name, new in module.named_parameters(path, recurse=False):
                per_node = keep.view(-1, *[1] * (new.ndim - 1))
                changed[name] = last[name] + per_node * (new - last[name])
        return changed

    def end(self, index: int, sequence: TaskSequence) -> None:
        """Keep the task's weights, and put the merge of all into the network."""
        self.models.append(shared_weights(self.network, self.setting))
        alpha = list(self.options.alpha or [1.0] * len(sequence.tasks))
        shares = alpha[index + 1 - len(self.models) : index + 1]
        self._load(self.merged(shares if any(shares) else [1.0] * len(shares)))

    def resistance(self, start: Mapping[str, Tensor]) -> float | None:
        """‖θ − θ_{t−1}‖², with the last task's own weights; None before there are any."""
        return squared_distance(self.network, self.models[-1]) if self.models else None

    def merged(self, alpha: list[float]) -> Weights:
        """The merge of `models`."""
        raise NotImplementedError

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """The weights of every task."""
        stored = [*self.models, self.first]
        return {"anchor": [w for weights in stored for w in weights.values()]}

    def state_dict(self) -> dict[str, Tensor]:
        """Every task's weights under its number, and the first ones if they are still needed."""
        groups = {**{f"model.{t}": m for t, m in enumerate(self.models)}, "first": self.first}
        return {f"{group}.{name}": w for group, m in groups.items() for name, w in m.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take every task's weights back."""
        on_device = {name: tensor.to(self.setting.device) for name, tensor in state.items()}
        self.models = [*numbered(on_device, "model")]
        self.first = under(on_device, "first.")


class IMMMean(IMM[IMMOptions]):
    """mean-IMM: θ = Σ α_t θ_t."""

    name = "imm-mean"
    title = "IMM (mean)"
    Options = IMMOptions
    stores = "The weights of every task, which are merged."
    needs = "nothing"
    knob = "strength"

    def merged(self, alpha: list[float]) -> Weights:
        """The weighted mean."""
        return merged_mean(self.models, alpha)


class IMMMode(IMM[IMMModeOptions]):
    """mode-IMM: θ = Σ α_t F_t θ_t / Σ α_t F_t, with F_t the diagonal Fisher of task t."""

    name = "imm-mode"
    title = "IMM (mode)"
    Options = IMMModeOptions
    stores = "The weights and the diagonal Fisher of every task."
    needs = "unlabelled old data, once"
    knob = "strength"

    def __init__(self, network: TaskNetwork, options: IMMModeOptions, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self.fishers: list[Weights] = []

    def end(self, index: int, sequence: TaskSequence) -> None:
        """Estimate the Fisher of the task at its own weights, then merge."""
        memory = retain.EWC(
            self.network,
            fisher=self.options.fisher,
            seed=self.setting.seed + index,
            include=self.setting.shared,
        )
        memory.observe(self.passes(index, sequence), progress=False)
        self.fishers.append(dict(memory.observed))
        super().end(index, sequence)

    def merged(self, alpha: list[float]) -> Weights:
        """The mode of the mixture."""
        return merged_mode(self.models, self.fishers, alpha)

    def kept(self) -> dict[str, Iterable[Tensor]]:
        """The weights and the Fisher of every task."""
        return {**super().kept(), "importance": [f for F in self.fishers for f in F.values()]}

    def state_dict(self) -> dict[str, Tensor]:
        """Every task's weights and Fisher."""
        fishers = {f"fisher.{t}.{n}": f for t, F in enumerate(self.fishers) for n, f in F.items()}
        return {**super().state_dict(), **fishers}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take every task's weights and Fisher back."""
        super().load_state_dict(state)
        on_device = {name: tensor.to(self.setting.device) for name, tensor in state.items()}
        self.fishers = [*numbered(on_device, "fisher")]
