"""The head of a network: the Linear that makes its output, found by watching, then taken off."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retain.borrowed import borrowed
from retain.errors import ModelError
from retain.samples.outputs import first_tensor


@dataclass(frozen=True)
class LinearUse:
    """One use of a Linear: its name, the shape of what it saw, and what it put out."""

    name: str
    seen: tuple[int, ...]
    output: Tensor


def find_head(model: nn.Module, name: str, inputs: Tensor) -> str:
    """The name of the Linear whose output is the model's output for `inputs`.

    Not simply the last Linear of the model: one for auxiliary outputs may be registered later.

    Raises:
        ModelError: there is no such Linear, or it is used in another way than as a head.
    """
    uses, output = _watched(model, inputs)
    heads = [use for use in uses if _same(use.output, output)]
    if not heads:
        raise ModelError(_why_none(model, name, uses, output))
    head = heads[-1]
    if sum(use.name == head.name for use in uses) > 1:
        raise ModelError(
            f"{name} uses {head.name!r} several times in one pass, so it cannot become a head per "
            "task. End the model in a Linear that is used once."
        )
    if len(head.seen) != 2:
        raise ModelError(
            f"The last Linear of {name}, {head.name!r}, sees features of shape {head.seen}; "
            "expected [samples, features]. Flatten or pool them before it."
        )
    return head.name


def without_head(model: nn.Module, head: str) -> tuple[nn.Module, int]:
    """(the model with nothing in the place of its head, the number of features it then puts out).

    What stands just before the head, such as dropout, stays.
    """
    linear = model.get_submodule(head)
    assert isinstance(linear, nn.Linear)
    if not head:
        return nn.Identity(), linear.in_features
    parent, _, child = head.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, linear.in_features


def _watched(model: nn.Module, inputs: Tensor) -> tuple[list[LinearUse], Tensor]:
    """Every use of a Linear in one pass, and the output."""
    uses: list[LinearUse] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, seen: Any, output: Any) -> None:
        uses.append(LinearUse(names[module], tuple(seen[0].shape), output))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(note).remove)
        stack.enter_context(borrowed(model))
        stack.enter_context(torch.no_grad())
        return uses, first_tensor(model(inputs))


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same numbers in memory, perhaps in another shape."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _why_none(model: nn.Module, name: str, uses: list[LinearUse], output: Tensor) -> str:
    if not uses:
        last = [type(module).__name__ for module in model.modules() if not list(module.children())]
        return (
            f"{name} has no head: no Linear is used in it (its last layer is a "
            f"{last[-1] if last else 'function'}). The last Linear becomes a head per task; choose "
            "a model that ends in one, or put one at its end."
        )
    return (
        f"{name} has no head that could be replaced: its output of shape {tuple(output.shape)} is "
        f"not what its last Linear, {uses[-1].name!r}, puts out (shape "
        f"{tuple(uses[-1].output.shape)}). Something follows it, such as a softmax, or several "
        "outputs are put together. End the model in a Linear."
    )
