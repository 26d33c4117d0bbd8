"""Repair: a model that has forgotten gets back what mattered, without training and without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import torch
from torch import Tensor, nn

from retain import arguments
from retain.counterparts import REMEDY, beside, few, in_a_checkpoint, lookalike, plain_names
from retain.errors import InputError, StateError
from retain.importance import Importance
from retain.memory.body import Memory
from retain.memory.memory_file import apart
from retain.parameters import (
    Weights,
    merged_copy,
    refuse_unmerged,
    shape_of,
    shape_there,
    summed_in,
    unusable,
)
from retain.saying import warn


@overload
def repair(
    base: nn.Module | Weights,
    tuned: nn.Module,
    memory: Memory | Importance,
    *,
    amount: float = 1.0,
) -> nn.Module: ...
@overload
def repair(
    base: nn.Module | Weights,
    tuned: Weights,
    memory: Memory | Importance,
    *,
    amount: float = 1.0,
) -> dict[str, Tensor]: ...
def repair(
    base: nn.Module | Weights,
    tuned: nn.Module | Weights,
    memory: Memory | Importance,
    *,
    amount: float = 1.0,
) -> nn.Module | dict[str, Tensor]:
    """`tuned`, with every weight's change since `base` shrunk by how much the weight mattered.

    θ = θ_base + (θ_tuned − θ_base) / (1 + amount · Ω / mean Ω)

    0 gives `tuned` back; the larger `amount`, the nearer important weights come to `base`, while
    those that nothing depends on stay where training put them. Parameters without importance (new
    heads) are those of `tuned`. Running statistics shrink as the weight of the same layer does.

    Args:
        base: the model, or its state dict, from before.
        tuned: the model that was trained further, or its state dict; untouched. Adapters of PEFT
            are merged into the result.
        memory: what was consolidated on `base`, or its importance.
        amount: how far to go back, at least 0.

    Returns:
        A new model where `tuned` is one, or else a new state dict.

    Raises:
        InputError: an amount out of range, or weights that are no finite numbers or another
            model's; every name is listed.
        StateError: a memory without importance.

    Examples:
        >>> import torch, retain
        >>> base = {"weight": torch.tensor([0.0, 0.0])}
        >>> tuned = {"weight": torch.tensor([1.0, 1.0])}
        >>> importance = retain.Importance({"weight": torch.tensor([2.0, 0.0])}, samples=10)
        >>> retain.repair(base, tuned, importance, amount=1.0)["weight"]  # mean Ω is 1
        tensor([0.3333, 1.0000])
    """
    arguments.number("amount", amount, least=0)
    importance = memory.importance if isinstance(memory, Memory) else memory
    if not isinstance(importance, Importance):
        raise InputError(
            f"memory is a {type(memory).__name__}; expected a memory or an Importance."
        )
    if not any(omega.numel() for omega in importance.values()):
        raise StateError("The memory has no importance yet: observe data and call consolidate().")
    before = _state(base, "base")
    if isinstance(tuned, nn.Module):
        model = merged_copy(tuned)
        state = _repaired(before, model.state_dict(), importance, float(amount))
        model.load_state_dict(state)
    else:
        state = _repaired(before, _state(tuned, "tuned"), importance, float(amount))
    if isinstance(memory, Memory):
        warn_of_another_base(apart(before, memory.anchor))
    return model if isinstance(tuned, nn.Module) else state


def _repaired(
    base: Weights, tuned: Weights, importance: Mapping[str, Tensor], amount: float
) -> dict[str, Tensor]:
    names = plain_names(tuned, importance)
    before = {plain: base[name] for plain, name in plain_names(base, importance).items()}
    after = {plain: tuned[name] for plain, name in names.items()}
    _refuse_others(before, after, importance)
    _warn_of_what_stays(before, after, importance)
    weights = sum(omega.numel() for omega in importance.values())
    mean = sum(float(omega.double().sum()) for omega in importance.values()) / weights
    largest = max(float(omega.double().max()) for omega in importance.values() if omega.numel())
    result = {name: tensor.detach().clone() for name, tensor in tuned.items()}
    if mean == 0 or amount == 0:
        return result
    shrunk = dict(importance)
    for name in names.keys() - importance.keys():
        if (own := _of_the_same_layer(name, names, before, importance)) is not None:
            shrunk[name] = importance[own]
    for name, omega in shrunk.items():
        now = result[names[name]]
        wide = summed_in(now.dtype)
        start = before[name].to(now.device, wide)
        share = (omega.to(summed_in(omega.dtype)) / largest).to(now.device, wide)
        keep = 1 + min(amount * (largest / mean), torch.finfo(wide).max) * share
        # θ* + Δ / (1 + amount · Ω / mean Ω), where no Ω is too small or too large for its type
        now.copy_(start + (now.to(wide) - start) / keep)
    if bad := unusable({name: result[names[name]] for name in shrunk}, shrunk):
        raise InputError(
            f"Nothing can be repaired: {'; '.join(bad)} in the result. The types of base and tuned "
            "are too far apart: one holds numbers that are infinite in the other."
        )
    return result


def _of_the_same_layer(
    name: str, tuned: Mapping[str, str], base: Weights, importance: Mapping[str, Tensor]
) -> str | None:
    """The weight beside a running statistic, if there is one of its shape with importance."""
    layer, _, last = name.rpartition(".")
    own = f"{layer}.weight" if layer else "weight"
    statistic = last.startswith("running_") and base.get(name) is not None
    fits = own in importance and own in tuned and statistic
    return own if fits and base[name].shape == importance[own].shape else None


def _refuse_others(base: Weights, tuned: Weights, importance: Mapping[str, Tensor]) -> None:
    wrong, remedy = [], ""
    for name, omega in importance.items():
        for what, weights in (("base", base), ("tuned", tuned)):
            if name not in weights:
                hint = lookalike(name, omega.shape, weights)
                remedy = REMEDY if hint else remedy
                wrong.append(f"{name} is missing in {what}{hint}")
            elif shape_of(weights[name]) != omega.shape:
                shapes = f"{shape_there(weights[name])} in {what}"
                wrong.append(f"{name} is {shapes}, and {tuple(omega.shape)} in the memory")
    if wrong:
        raise InputError(
            f"Not the weights of one model: {'; '.join(wrong)}. Give the model that the memory was "
            f"made from as base, and the fine-tuned model as tuned.{remedy}"
        )
    bad = [
        f"in {what} {phrase}"
        for what, weights in (("base", base), ("tuned", tuned))
        for phrase in unusable(weights, importance)
    ]
    if bad:
        raise InputError(
            f"Nothing can be repaired: {'; '.join(bad)}. Expected finite numbers in both."
        )


def _warn_of_what_stays(base: Weights, tuned: Weights, importance: Mapping[str, Tensor]) -> None:
    """Where nothing that is held has changed, nothing is mended; nor is what is new beside it."""
    new = beside(tuned, base, importance)
    if new:
        warn(
            f"{few(new)}: in tuned beside weights that the memory holds, and not in base. They "
            "stay as they are, whatever they do to the output. If they are adapters, merge them "
            "into the weights first."
        )
    if all(_same(base[name], tuned[name]) for name in importance):
        warn(
            "base and tuned are the same in every weight that the memory holds: there is nothing "
            "to repair."
        )


def _same(was: Tensor, now: Tensor) -> bool:
    there = was.detach().to(now.device, now.dtype)
    if now.element_size() == 1:  # types of 8 bits have hardly any operations
        return torch.equal(there.view(torch.uint8), now.detach().view(torch.uint8))
    return torch.equal(there, now.detach())


def warn_of_another_base(other: Sequence[str]) -> None:
    """Ω was made on θ*: with base and tuned the wrong way round, all goes the wrong way.

    Args:
        other: names of weights of the base that are not θ*.
    """
    if other:
        warn(
            f"base is not what the memory was consolidated on: {few(other)}. base must be the "
            "model before fine-tuning, and tuned the model after it; are they the wrong way round?"
        )


def _state(given: nn.Module | Weights, what: str) -> dict[str, Tensor]:
    if isinstance(given, nn.Module):
        return merged_copy(given).state_dict()
    if isinstance(given, Mapping) and all(isinstance(t, Tensor) for t in given.values()):
        refuse_unmerged(map(str, given), what)
        return dict(given)
    said = f"{what} is a {type(given).__name__}; expected a model or a state dict."
    if isinstance(given, Mapping):
        odd = few([str(name) for name, value in given.items() if not isinstance(value, Tensor)])
        key = in_a_checkpoint(given)
        more = f"It is a checkpoint: give its [{key!r}]." if key else f"No tensors: {odd}."
        said = f"{what} is no state dict. {more}"
    raise InputError(said)
