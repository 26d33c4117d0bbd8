"""Importance passports: Ω of published models, small, so that no data are needed to protect them.

memory = retain.load(retain.passports.minilm(), model)
"""

from __future__ import annotations

from pathlib import Path

from retain.passports.passport import Passport, passport

__all__ = ["Passport", "efficientnet_lite0", "minilm", "passport"]

_SHIPPED = Path(__file__).parent / "shipped"


def minilm() -> Path:
    """The passport of all-MiniLM-L6-v2, as Hugging Face's `BertModel`; for `retain.load`.

    Examples:
        >>> retain.passports.minilm().name  # memory = retain.load(retain.passports.minilm(), bert)
        'minilm.safetensors'
    """
    return _SHIPPED / "minilm.safetensors"


def efficientnet_lite0() -> Path:
    """The passport of EfficientNet-Lite0 (ImageNet), as in `efficientnet_lite_pytorch`.

    Examples:
        >>> retain.passports.Passport.load(retain.passports.efficientnet_lite0()).card["name"]
        'EfficientNet-Lite0 (ImageNet)'
    """
    return _SHIPPED / "efficientnet_lite0.safetensors"
