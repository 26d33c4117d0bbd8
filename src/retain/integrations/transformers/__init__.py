"""Hugging Face Trainer: a callback that protects its steps, and the norm of logits never made."""

from retain.integrations.transformers.callback import RetainCallback
from retain.integrations.transformers.logits import logits_norm

__all__ = ["RetainCallback", "logits_norm"]
