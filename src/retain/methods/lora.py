"""LoRA (Hu et al. 2022): a task changes the shared weights by matrices of low rank only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from retain.errors import ModelError
from retain.extras import needs as needed
from retain.methods.low_rank_weight import change_by_low_rank, merge_changes
from retain.methods.method import Method, Setting
from retain.models import TaskNetwork
from retain.ranges import Positive, Size
from retain.tasks import TaskSequence

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


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

    Adapted are the linear and the convolutional layers of the backbone: by PEFT, and where it
    cannot (convolutions in groups, or of a class of their own) by the same formula.
    """

    name = "lora"
    title = "LoRA"
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
        rank, alpha = self.options.rank, self.options.alpha
        backbone.requires_grad_(False)
        others = [name for name in targets if not _is_for_peft(backbone.get_submodule(name))]
        # As an expression: of a list PEFT takes every module whose name only ends so.
        exactly = "|".join(re.escape(name) for name in targets if name not in others)
        if exactly:
            config = self._peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=exactly)
            self._peft.inject_adapter_in_model(config, backbone)
        for name in others:
            change_by_low_rank(backbone.get_submodule(name), rank, alpha)

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
        merge_changes(backbone)
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
        adapted = _is_for_peft(module) or _is_other_convolution(module)
        if adapted and name not in inside:
            yield name


def _is_for_peft(module: nn.Module) -> bool:
    """Whether PEFT's adapter is right for it: it makes a convolution of the layer's own class."""
    if isinstance(module, nn.Linear):
        return True
    return type(module) in CONVOLUTIONS and getattr(module, "groups", 1) == 1


def _is_other_convolution(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and not parametrize.is_parametrized(module, "weight")
