"""Ω in little space: of a matrix its row and column sums, from which it is made up again."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import RetainError
from retain.header import Fields
from retain.importance import Importance, not_importance
from retain.memory.mas import MAS
from retain.parameters import named_parameters
from retain.readable import memory_bytes

KIND = "passport"
SINGLE = 4  # bytes of a number in single precision, of which fingerprints are
ROWS, COLUMNS, WHOLE = "rows", "columns", "whole"


def compacted(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`"kind/name"` -> tensor, in bfloat16: rows and columns of a matrix, anything else whole.

    A convolution's weight counts as the matrix [outputs, the rest].
    """
    kept: dict[str, Tensor] = {}
    for name, omega in importance.items():
        if omega.ndim < 2:
            kept[f"{WHOLE}/{name}"] = omega.to(torch.bfloat16)
            continue
        matrix = omega.flatten(1).double()
        kept[f"{ROWS}/{name}"] = matrix.sum(1).to(torch.bfloat16)
        kept[f"{COLUMNS}/{name}"] = matrix.sum(0).to(torch.bfloat16)
    return kept


def expanded(
    kept: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Ω as `compacted` kept it, in single precision: Ωᵢⱼ = rᵢ cⱼ / Σ r for a matrix.

    Of all Ω with these sums it is the one that says nothing else (the least Kullback–Leibler
    divergence from the true one among products of a row and a column).

    Raises:
        KeyError: a parameter that is not there.
        ValueError: sizes that do not fit the shapes.
    """
    found, room = {}, memory_bytes()
    bad = not_importance(kept)
    if bad:
        raise ValueError(bad)
    flat = [
        name for name, tensor in kept.items() if tensor.ndim != 1 and not name.startswith(WHOLE)
    ]
    if flat:
        raise ValueError(f"{', '.join(flat)} is neither a row nor a column")
    for name, shape in shapes.items():
        parts = (WHOLE,) if len(shape) < 2 else (ROWS, COLUMNS)
        given = [kept[f"{part}/{name}"] for part in parts]
        numbers, expected = math.prod(part.numel() for part in given), math.prod(shape)
        if numbers != expected:  # before so many are made
            raise ValueError(f"{name} has {numbers} numbers for the shape {tuple(shape)}")
        if room is not None and 4 * numbers > room:
            needed = f"{4 * numbers / 1e9:,.0f} GB, and this machine has {room / 1e9:,.0f} GB"
            raise ValueError(f"{name} {tuple(shape)} takes {needed}")
        omega = given[0].float()
        if len(given) == 2:
            total = omega.sum()
            if not total.isfinite():
                raise ValueError(f"{name} has row sums that add up to infinity")
            columns = given[1].float()
            omega = torch.outer(omega, columns / total if total > 0 else columns)
        found[name] = omega.reshape(shape)
        room = None if room is None else room - 4 * numbers
    return found


def fingerprints(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> the beginning of the SHA-256 of each weight's values, as single precision."""
    values = ((n, w.detach().cpu().float().contiguous().numpy()) for n, w in weights.items())
    return {name: hashlib.sha256(value.tobytes()).hexdigest()[:16] for name, value in values}


def memory_of(
    model: nn.Module,
    kept: Mapping[str, Tensor],
    header: Mapping[str, Any],
    refusal: Callable[[str], RetainError],
    offload: str | os.PathLike[str] | None = None,
) -> MAS:
    """A MAS of `model` with the Ω of a passport; θ* are the weights, which must be the very ones.

    Raises:
        RetainError: what `refusal` makes, if the header is damaged or the model another one.
    """
    fields = Fields(header)
    expected, shapes = fields.named_texts("weights"), fields.shapes("shapes")
    samples, routes = fields.count("samples"), fields.named_texts("routes")
    try:
        fields.finish()
        if not expected or expected.keys() != shapes.keys():
            raise ValueError("weights and shapes are not of the same parameters")
        omega = expanded(kept, shapes)
    except (KeyError, ValueError) as error:
        raise refusal(f"is a damaged passport: {error}.") from error
    at = _place_in(model, expected)
    own = named_parameters(model.get_submodule(at))
    missing = [name for name in expected if name not in own]
    misshapen = [n for n, s in shapes.items() if n in own and tuple(own[n].shape) != s]
    if missing or misshapen:
        kinds = (("missing", missing), ("misshapen", misshapen))
        said = "; ".join(f"{what}: {', '.join(names)}" for what, names in kinds if names)
        raise refusal(f"is the passport of another model; {said}.")
    marks = fingerprints({name: own[name] for name in expected})
    changed = [name for name, mark in expected.items() if marks[name] != mark]
    if changed:
        coarse = sorted({str(own[n].dtype) for n in changed if own[n].element_size() < SINGLE})
        types = ", ".join(one.removeprefix("torch.") for one in coarse)
        raise refusal(
            f"is of other weights: {len(changed)} of {len(expected)} differ, such as "
            f"{', '.join(changed[:3])}. A passport protects the published weights: load it before "
            "the model is trained further."
            + (f" Those of the model are {types}: load it in float32, and this." if types else "")
        )
    before = f"{at}." if at else ""
    memory = MAS(model, include=[before + name for name in expected], offload=offload)
    memory.observed = Importance(
        {before + name: value for name, value in omega.items()},
        samples,
        {before + name: route for name, route in routes.items()},
    )
    return memory.consolidate()


def _place_in(model: nn.Module, names: Iterable[str]) -> str:
    """The module of `model` that has parameters of these names: itself, or the first inside."""
    wanted = set(names)
    inside = (at for at, m in model.named_modules() if wanted <= named_parameters(m).keys())
    return next(inside, "")
