"""LoRA (Hu et al. 2022): a task changes the shared weights by matrices of low rank only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from retain.errors import ModelError
from retain.extras import needs as needed
from retain.methods.method import Method, Setting
from retain.models import TaskNetwork
from retain.ranges import Positive, Size
from retain.tasks import TaskSequence

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class LoRAOptions:
    """Defaults of LoRA.

    Attributes:
        rank: r, of the change of each weight.
        alpha: α, by which the change is scaled: α/r.
    """

    rank: Size = 8
    alpha: Positive = 16.0


class LoRA(Method[LoRAOptions]):
    """From the second task on, θ + (α/r) B A: A and B learn, and are merged when the task ends.

    Adapted are the linear and the convolutional layers of the backbone, by PEFT.
    """

    name = "lora"
    Options = LoRAOptions
    stores = "Nothing but the network; while a task is learned, two thin matrices per layer."
    needs = "nothing"
    knob = "rank"
    sweep = (1, 2, 4, 8, 16)
    holds_weights = True

    def __init__(self, network: TaskNetwork, options: LoRAOptions, setting: Setting) -> None:
        super().__init__(network, options, setting)
        self._peft = needed("peft", extra="trainers")

    def begin(self, index: int, sequence: TaskSequence) -> None:
        """Put fresh adapters beside the backbone's layers, and freeze all else of it.

        Raises:
            ModelError: there is no layer that can be adapted.
        """
        if index == 0:
            return
        backbone = self.network.backbone
        targets = list(_targets(backbone))
        if not targets:
            raise ModelError("LoRA finds no Linear or convolution in the backbone to adapt.")
        if targets == [""]:  # the backbone is the layer itself
            raise ModelError(
                f"LoRA cannot adapt a backbone that is a single {type(backbone).__name__}; "
                "put it into an nn.Sequential."
            )
        config = self._peft.LoraConfig(
            r=self.options.rank, lora_alpha=self.options.alpha, target_modules=targets
        )
        self._peft.inject_adapter_in_model(config, backbone)

    def end(self, index: int, sequence: TaskSequence) -> None:
        """Merge what the adapters learned into the weights; the network is a plain one again."""
        backbone = self.network.backbone
        layers = {
            name: module
            for name, module in backbone.named_modules()
            if hasattr(module, "get_base_layer") and hasattr(module, "merge")
        }
        for name, layer in layers.items():
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, layer.get_base_layer())
        backbone.requires_grad_(True)
        if layers:
            del backbone.peft_config


def _targets(backbone: nn.Module) -> Iterator[str]:
    """The layers whose own forward is called: not those whose weights attention only reads."""
    inside = {
        name
        for parent, module in backbone.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for name in (f"{parent}.{child}".lstrip(".") for child, _ in module.named_modules())
    }
    for name, module in backbone.named_modules():
        if isinstance(module, ADAPTED) and name not in inside:
            yield name
