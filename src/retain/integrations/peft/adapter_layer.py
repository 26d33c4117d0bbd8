"""One layer of an adapter: what is active in it, what that is made of, and whether it still is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from typing_extensions import Self

from retain.errors import StateError
from retain.memory.movement import version


@dataclass(frozen=True)
class AdapterLayer:
    """An adapter's layer, and in which state it was found.

    Attributes:
        name: of the layer.
        module: the layer itself.
        adapters: those that it has.
        active: those of them that were active.
        scales: the factors of these.
        base: the parameters of the layer below.
        as_found: what `resting` gave of each of these.
    """

    name: str
    module: Any
    adapters: frozenset[str]
    active: tuple[str, ...]
    scales: tuple[float | None, ...]
    base: tuple[nn.Parameter, ...]
    as_found: tuple[object, ...]

    @classmethod
    def of(cls, name: str, module: Any) -> Self:
        """The layer as it is now."""
        adapters, active = adapters_in(module), active_in(module)
        base = tuple(module.get_base_layer().parameters(recurse=False))
        scales = tuple(map(module.scaling.get, active))
        return cls(name, module, adapters, active, scales, base, tuple(map(resting, base)))

    @property
    def is_current(self) -> bool:
        """Whether it is as it was found, if its modules and parameters are the same."""
        scaling, module = self.module.scaling, self.module
        active = tuple(name for name in module.active_adapters if name in self.adapters)
        return (
            active == self.active
            and tuple(map(scaling.get, active)) == self.scales
            and tuple(map(resting, self.base)) == self.as_found
        )

    def refuse_changed(self, root: nn.Module | None) -> None:
        """Nothing, if the layer still adds its products to a frozen weight.

        Args:
            root: where it has to be; None if it is known to be there.

        Raises:
            StateError: it is gone, it was merged, or other adapters are active.
        """
        if root is not None and not self._is_in(root):
            raise StateError(
                f"The adapter of '{self.name}' is no longer in the model: it was unloaded or "
                "merged. From here on, protect the weights with the memory itself: "
                "memory.attach(optimizer)."
            )
        if self.module.merged_adapters:
            raise StateError(
                f"The adapter {' and '.join(map(repr, self.module.merged_adapters))} is merged "
                f"into '{self.name}', so training the adapter no longer changes that layer. Call "
                "peft_model.unmerge_adapter() before you continue training."
            )
        now = active_in(self.module)
        if now != self.active:
            raise StateError(
                f"Other adapters are active in '{self.name}' than when this LoraPenalty was made: "
                f"{', '.join(now) or 'none'}, not {', '.join(self.active) or 'none'}. Make a new "
                "LoraPenalty after set_adapter(…), and remove() the handle of this one."
            )

    def _is_in(self, root: nn.Module) -> bool:
        try:
            return root.get_submodule(self.name) is self.module
        except AttributeError:
            return False


def adapters_in(module: Any) -> frozenset[str]:
    """The adapters that a layer has."""
    return frozenset({*module.lora_A.keys(), *module.lora_embedding_A.keys()})


def active_in(module: Any) -> tuple[str, ...]:
    """The adapters that are active in a layer, and that it has."""
    have = adapters_in(module)
    return tuple(name for name in module.active_adapters if name in have)


def resting(p: nn.Parameter) -> tuple[object, ...]:
    """Whether it is trained; if not, a number that changes when it is written to."""
    return p.requires_grad, None if p.requires_grad else version(p)
