"""One layer of an adapter: what is active in it, what that is made of, and whether it still is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from retain.errors import StateError
from retain.memory.movement import version


@dataclass(frozen=True)
class AdapterLayer:
    """An adapter's layer, and in which state it was found; `made_of` is what `made_of_now` gave."""

    name: str
    module: Any
    active: tuple[str, ...]
    made_of: tuple[object, ...]

    def refuse_changed(self, root: nn.Module) -> None:
        """Nothing, if the layer still adds its products to a frozen weight.

        Raises:
            StateError: it is gone, it was merged, or other adapters are active.
        """
        try:
            there = root.get_submodule(self.name) is self.module
        except AttributeError:
            there = False
        if not there:
            raise StateError(
                f"The adapter of '{self.name}' is no longer in the model: it was unloaded or "
                "merged. What protects the weights from here on is the memory itself: "
                "memory.attach(optimizer)."
            )
        if self.module.merged_adapters:
            raise StateError(
                f"The adapter {' and '.join(map(repr, self.module.merged_adapters))} is merged "
                f"into '{self.name}': its weights no longer move by it. Call "
                "peft_model.unmerge_adapter() before training goes on."
            )
        now = active_in(self.module)
        if now != self.active:
            raise StateError(
                f"Other adapters are active in '{self.name}' than when this was made: "
                f"{', '.join(now) or 'none'}, not {', '.join(self.active) or 'none'}. Make a new "
                "LoraPenalty after set_adapter(…), and remove() the handle of this one."
            )


def active_in(module: Any) -> tuple[str, ...]:
    """The adapters that are active in a layer, and that it has."""
    have = {*module.lora_A.keys(), *module.lora_embedding_A.keys()}
    return tuple(name for name in module.active_adapters if name in have)


def made_of_now(module: Any) -> tuple[object, ...]:
    """What the active adapters add, and to what: factors, and which parameters they are now."""
    of_active = [
        (name, module.scaling.get(name), *(id(p) for p in _parameters_of(module, name)))
        for name in active_in(module)
    ]
    base = module.get_base_layer()
    return (*of_active, *map(resting, base.parameters(recurse=False)))


def resting(p: nn.Parameter) -> tuple[object, ...]:
    """Which parameter it is, and whether it is trained; else also that it was not written to."""
    return id(p), p.requires_grad, None if p.requires_grad else version(p)


def _parameters_of(module: Any, adapter: str) -> Iterator[nn.Parameter]:
    for parts in (module.lora_A, module.lora_B):
        if adapter in parts:
            yield from parts[adapter].parameters()
    for tensors in (module.lora_embedding_A, module.lora_embedding_B):
        if adapter in tensors:
            yield tensors[adapter]
