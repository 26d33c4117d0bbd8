"""A training function of the user's own in place of the runner's, protected from outside."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Container, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from retain.errors import ConfigError, NonFiniteError
from retain.methods import Method
from retain.tasks import TaskSequence
from retain.tasks.code_files import function_from_file

Recipe = Callable[[Any, Optimizer, "Loader"], Any]


@lru_cache
def recipe_from_file(spec: str) -> Recipe:
    """The function that `path/to/file.py:function` names.

    Raises:
        ConfigError: the file or the function is not there, or the file cannot be run.
    """
    return function_from_file(spec, "recipe")


class Loader:
    """The training data of a task: batches of inputs and labels, in another order each time."""

    def __init__(
        self, method: Method[Any], index: int, sequence: TaskSequence, order: torch.Generator
    ) -> None:
        self._next = (method, index, sequence, order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        method, index, sequence, order = self._next
        for batch in method.batches(index, sequence, order):
            yield batch.inputs, batch.labels

    def __len__(self) -> int:
        method, index, sequence, _ = self._next
        return method.steps(index, sequence, method.setting.batch_size)


def follow(
    spec: str,
    method: Method[Any],
    index: int,
    sequence: TaskSequence,
    *,
    optimizer: Optimizer,
    order: torch.Generator,
) -> None:
    """Let the recipe train the method's network on task `index`.

    Raises:
        ConfigError: it raised, returned something, took no step with the optimizer that it was
            given, or steps with another one as well, or moved no weight.
        NonFiniteError: it ended in weights that are not finite.
    """
    network, steps = method.network, 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    begun: dict[int, int] = {}
    others: list[str] = []

    def begin(stepping: Optimizer, *_: Any) -> None:
        begun[id(stepping)] = steps

    def note_another(stepping: Optimizer, *_: Any) -> None:
        wraps = begun.pop(id(stepping), steps) < steps  # the given one stepped within its step
        if stepping is not optimizer and not wraps and _steps_any(stepping, trainable):
            others.append(type(stepping).__name__)

    before = [p.detach().clone() for p in network.parameters()]
    trainable = {p: p.requires_grad for p in network.parameters()}
    hooks = (
        optimizer.register_step_post_hook(count),
        register_optimizer_step_pre_hook(begin),
        register_optimizer_step_post_hook(note_another),
    )
    loader = Loader(method, index, sequence, order)
    try:
        with torch.enable_grad():  # and whatever mode it ends in is left again
            returned = recipe_from_file(spec)(network, optimizer, loader)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"The recipe {spec} failed: {type(error).__name__}: {error}{_where(error, spec)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for p, was in trainable.items():  # what a recipe froze is the next task's again
            p.requires_grad_(was)
    if returned is not None and returned is not network:
        raise ConfigError(
            f"The recipe {spec} returned a {type(returned).__name__}; expected None, or the model "
            "that it was given. What it trains is that model, in place."
        )
    moved = any(not torch.equal(a, b) for a, b in zip(before, network.parameters()))
    if moved and not steps:
        raise ConfigError(
            f"The recipe {spec} changed the weights without a step of the optimizer that it was "
            "given, so nothing protected them. Call that optimizer's step()."
        )
    if others:
        raise ConfigError(
            f"The recipe {spec} stepped the model's weights with an optimizer of its own "
            f"({others[0]}) as well, and what that does is not protected. Step the optimizer that "
            "it was given alone: its param_groups can be changed."
        )
    if not moved:
        why = f"{steps} steps of the optimizer left every weight as it was" if steps else "no step"
        raise ConfigError(f"The recipe {spec} trained nothing: {why}.")
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise NonFiniteError(f"The recipe {spec} ended in weights that are not finite.")


def _steps_any(optimizer: Optimizer, weights: Container[Any]) -> bool:
    held = (p for group in optimizer.param_groups for p in group["params"])
    return any(p in weights and p.grad is not None for p in held)


def _where(error: BaseException, spec: str) -> str:
    """The line of the recipe's own file that the error came through last."""
    file = Path(spec.rpartition(":")[0]).name
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == file]
    return f" (in line {lines[-1]})" if lines else ""
