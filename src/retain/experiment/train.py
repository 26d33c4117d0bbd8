"""One task learned with one method: the loop itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

from retain.errors import NonFiniteError
from retain.experiment.config import Config
from retain.experiment.machine import Autocast
from retain.experiment.progress import Watcher
from retain.experiment.recipe import follow
from retain.methods import Method
from retain.tasks import TaskSequence

MOMENTUM = 0.9
DROP = 0.1  # what the learning rate is multiplied by every `lr_drop_every` epochs
FUSED = ("cpu", "cuda")


def optimizer_maker(
    config: Config, device: torch.device
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """The optimizer that the config names, as a function of the parameters."""
    # One kernel for all parameters: less time for the same update. But not where steps may be
    # skipped: a fused optimizer does that inside, unseen by what is attached to it.
    fused = device.type in FUSED and not Autocast(config.amp, device).scales

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        if config.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=config.lr, fused=fused)
        several = list(parameters)
        optimizer = torch.optim.SGD(several, lr=config.lr, momentum=MOMENTUM, fused=fused)
        # The fused kernel wants a buffer for every parameter or for none, and a head that gets no
        # gradient in the first step gets none. From zero the first step is the same: 0.9 · 0 + g.
        for parameter in several:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    return make


def learn(
    method: Method[Any],
    index: int,
    sequence: TaskSequence,
    config: Config,
    *,
    order: torch.Generator,
    watch: Watcher,
) -> None:
    """Train the method's network on task `index` for the config's epochs, or as its recipe does.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
        ConfigError: a recipe that fails, or trains nothing.
    """
    network = method.network
    network.freeze_statistics = index > 0 and _freezes(method, config)
    method.begin(index, sequence)
    network.train()
    optimizer = method.setting.make_optimizer(p for p in network.parameters() if p.requires_grad)
    if config.recipe is not None:
        watch.phase("recipe")
        with method.protecting(index, optimizer):
            follow(config.recipe, method, index, sequence, optimizer=optimizer, order=order)
        return
    schedule = StepLR(optimizer, config.lr_drop_every or config.epochs, DROP)
    precision = Autocast(config.amp, method.setting.device)
    scaler = precision.scaler()
    alone = _normalises_batches(network)
    with method.protecting(index, optimizer):
        for epoch in range(config.epochs):
            watch.phase(f"epoch {epoch + 1}/{config.epochs}")
            total = torch.zeros((), device=method.setting.device)
            for batch in method.batches(index, sequence, order):
                if alone and len(batch.labels) == 1:
                    continue
                with precision.lowered():
                    loss = method.loss(batch)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
                total += loss.detach()
                watch.step(loss)
            schedule.step()
            if not torch.isfinite(total):
                raise NonFiniteError(
                    f"The loss of {method.name} became {total.item()} in epoch {epoch + 1} of task "
                    f"{sequence.tasks[index].name!r}. Lower the learning rate or the strength, or "
                    "use the adaptive form."
                )


@dataclass
class FirstTasks:
    """The first task as fine-tuning learns it: trained once, for all that would do the same.

    Kept of one seed at a time, since jobs come seed after seed.

    Attributes:
        seed: that it was learned with.
        weights: of the network right after it, on the CPU; empty before there is one.
        seconds: that the training took.
    """

    seed: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    def keep(self, seed: int, network: nn.Module, seconds: float) -> None:
        """Keep what was just learned, in place of what was there."""
        state = network.state_dict().items()
        self.weights = {name: tensor.to("cpu", copy=True) for name, tensor in state}
        self.seed, self.seconds = seed, seconds

    def put_into(self, method: Method[Any], sequence: TaskSequence) -> None:
        """Leave `method` and its network as if they had learned the first task now."""
        method.network.freeze_statistics = False
        method.begin(0, sequence)
        method.network.load_state_dict(self.weights)
        method.network.train()


def _freezes(method: Method[Any], config: Config) -> bool:
    """Whether running statistics stay as the first task left them."""
    if config.batch_norm == "frozen":
        return method.holds_weights
    return config.batch_norm == "frozen-for-all"


def _normalises_batches(network: nn.Module) -> bool:
    """Whether batch-norm uses the batch's statistics, which one sample alone does not have."""
    return any(isinstance(m, _BatchNorm) and m.training for m in network.modules())
