"""What a memory's file says beside its tensors: every field, its type and its range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from retain.header import Fields


def checked(header: Mapping[str, Any]) -> dict[str, Any]:
    """`header`, if each of its fields is as a memory writes it.

    Raises:
        ValueError: with every field that is missing, of another type or out of its range.
    """
    fields = Fields(header)
    fields.text("method")
    fields.number("strength")
    for name in ("samples", "tasks", "observed_samples"):
        fields.count(name)
    terms = fields.counts("term_samples")
    if "units" in header:  # older files do not have them
        units = fields.mappings("units")
        for place, named in enumerate(units):
            own = Fields(named)
            for name in named:
                own.number(name)
            fields.take(f"units.{place}", own)
        if len(units) != len(terms):
            raise ValueError(f"{len(units)} units for {len(terms)} terms")
    for name in ("routes", "observed_routes"):
        fields.named_texts(name)
    for name in ("frozen", "left_out"):
        if name in header:  # older files do not have them
            fields.texts(name)
    for name, check in (
        ("squared_norms", fields.optional_numbers),
        ("observed_squared_norm", fields.optional_number),
        ("precisions", fields.several_texts),
        ("observed_precisions", fields.texts),
    ):
        if name in header:
            check(name)
    fields.shapes("fingerprint")
    fields.flag("custom_output")
    settings = Fields(fields.mapping("settings"))
    settings.optional_texts("include")
    settings.texts("exclude")
    settings.optional_text("dtype", _is_floating, "the name of a floating type")
    settings.optional_text("device")
    fields.take("settings", settings)
    fields.finish()
    return dict(header)


def _is_floating(name: str) -> bool:
    dtype = getattr(torch, name, None)
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point
