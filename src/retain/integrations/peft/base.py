"""The base model of one that is wrapped already: to be observed as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from retain.errors import ModelError, StateError
from retain.extras import needs
from retain.integrations.peft.adapted import BEFORE, packed_below, root_of
from retain.parameters import is_adapters


@contextmanager
def base_weights(peft_model: nn.Module) -> Iterator[nn.Module]:
    """The base model, trainable and without what its adapters add, as long as the block lasts.

    Then adapters, and what is trainable, are as before.

        with base_weights(peft_model) as base:
            memory = retain.MAS(base).observe(loader).consolidate()
        penalty = LoraPenalty(memory, peft_model)

    Raises:
        ModelError: weights below adapters are quantised, so that nothing can be observed of them.
        StateError: an adapter is merged into the weights, which are then no longer those of before.

    Examples:
        >>> from peft import LoraConfig, get_peft_model
        >>> from retain.integrations.peft import base_weights
        >>> peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["0"]))
        >>> with base_weights(peft_model) as base:
        ...     memory = retain.MAS(base).observe(loader).consolidate()
    """
    root = root_of(peft_model)
    tuner, wrapper = (
        needs("peft.tuners.tuners_utils", "trainers").BaseTunerLayer,
        needs("peft.utils.other", "trainers").AuxiliaryTrainingWrapper,
    )
    layers: dict[str, Any] = {
        name: m for name, m in root.named_modules() if isinstance(m, (tuner, wrapper))
    }
    merged = [name for name, m in layers.items() if getattr(m, "merged_adapters", None)]
    if merged:
        raise StateError(
            f"An adapter is merged into {', '.join(merged)}. Call peft_model.unmerge_adapter() "
            "first, so that the base model is as it was."
        )
    packed = packed_below(root.named_modules())
    if packed:
        raise ModelError(
            f"Weights below adapters are quantised, and have no gradients: {', '.join(packed)}. "
            f"{BEFORE}."
        )
    trainable = {p: p.requires_grad for p in root.parameters()}
    disabled = {m: m.disable_adapters for m in layers.values()}
    try:
        for m in layers.values():
            m.enable_adapters(False)
        copies = tuple(f"{name}.modules_to_save." for name in layers)
        for name, p in root.named_parameters():
            own = not is_adapters(name) and not name.startswith(copies)
            p.requires_grad_(own and p.is_floating_point())
        yield root
    finally:
        for m, before in disabled.items():
            m.enable_adapters(not before)
        for p, before in trainable.items():
            p.requires_grad_(before)
