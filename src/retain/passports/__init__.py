"""Importance passports: Ω of published models, small, so that no data are needed to protect them.

memory = retain.load(retain.passports.minilm(), model)
"""

from __future__ import annotations

from pathlib import Path

from retain.passports.passport import Passport, passport

__all__ = ["Passport", "efficientnet_lite0", "minilm", "passport"]

_SHIPPED = Path(__file__).parent / "shipped"


def minilm() -> Path:
    """The passport of all-MiniLM-L6-v2, as Hugging Face's `BertModel`; for `retain.load`."""
    return _SHIPPED / "minilm.safetensors"


def efficientnet_lite0() -> Path:
    """The passport of EfficientNet-Lite0 (ImageNet), as in `efficientnet_lite_pytorch`."""
    return _SHIPPED / "efficientnet_lite0.safetensors"
