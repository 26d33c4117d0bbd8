"""LoRA and its like: the importance of the weights below holds what the adapters do to them."""

from retain.integrations.peft.base import base_weights
from retain.integrations.peft.lora_penalty import LoraPenalty

__all__ = ["LoraPenalty", "base_weights"]
