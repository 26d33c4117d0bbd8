"""A training function of the user's own in place of the runner's, protected from outside."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from retain.errors import ConfigError, NonFiniteError
from retain.methods import Method
from retain.tasks import TaskSequence
from retain.tasks.code_files import functions_from_file

NAMED = 5  # parameters in a message
Recipe = Callable[[Any, Optimizer, "Loader"], Any]


@lru_cache
def recipes_from_file(spec: str) -> Callable[[], Recipe]:
    """The function that `path/to/file.py:function` names, of a file that is run anew each time.

    What one training leaves in the file's variables is not there in the next: methods, seeds and
    tasks start alike, in one process or several, resumed or not.

    Raises:
        ConfigError: the file is not there; called, also that the function is not, or that the
            file cannot be run.
    """
    return functions_from_file(spec, "recipe")


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
            given, or steps with another one as well, or moved no weight, or left another model.
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

    given = dict(network.named_parameters())
    before = {name: p.detach().clone() for name, p in given.items()}
    kinds = _kinds(network)
    trainable = {p: p.requires_grad for p in network.parameters()}
    hooks = (
        optimizer.register_step_post_hook(count),
        register_optimizer_step_pre_hook(begin),
        register_optimizer_step_post_hook(note_another),
    )
    loader = Loader(method, index, sequence, order)
    try:
        with _alone():
            returned = recipes_from_file(spec)()(network, optimizer, loader)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also what would end the process
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
            "that it was given. It must train that model in place."
        )
    if changed := _another_model(given, kinds, network):
        raise ConfigError(
            f"The recipe {spec} left another model than it was given: {'; '.join(changed)}. Train "
            "the parameters that are there, in place, in the type and on the device that they "
            "have; torch.autocast computes in others."
        )
    moved = any(not torch.equal(before[name], p) for name, p in given.items())
    if moved and not steps:
        raise ConfigError(
            f"The recipe {spec} changed the weights without a step of the optimizer that it was "
            "given, so nothing protected them. Call that optimizer's step()."
        )
    if others:
        raise ConfigError(
            f"The recipe {spec} also stepped the model's weights with its own optimizer "
            f"({others[0]}), whose steps are not protected. Step only the optimizer that it was "
            "given; its param_groups may be changed."
        )
    if not moved:
        why = f"{steps} steps of the optimizer left every weight as it was" if steps else "no step"
        raise ConfigError(f"The recipe {spec} trained nothing: {why}.")
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise NonFiniteError(f"The recipe {spec} ended in weights that are not finite.")


@contextmanager
def _alone() -> Iterator[None]:
    """Within it gradients are on; afterwards what is global to a process is as it was."""
    folder, dtype, threads = Path.cwd(), torch.get_default_dtype(), torch.get_num_threads()
    try:
        with torch.enable_grad():  # and whatever mode it ends in is left again
            yield
    finally:
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _kinds(network: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Name -> shape, type and device of each weight and buffer."""
    return {n: (tuple(t.shape), t.dtype, t.device) for n, t in network.state_dict().items()}


def _another_model(
    given: dict[str, nn.Parameter], kinds: dict[str, tuple[Any, ...]], network: nn.Module
) -> list[str]:
    """What is not as it was, each in a few words: names, shapes, types, devices, parameters."""
    own, now = dict(network.named_parameters()), _kinds(network)
    said = {
        "removed": [name for name in kinds if name not in now],
        "added": [name for name in now if name not in kinds],
        "replaced by others": [
            name for name in given if name in own and own[name] is not given[name]
        ],
    }
    wrong = [f"{_few(names)} {what}" for what, names in said.items() if names]
    differ = [name for name in kinds if name in now and now[name] != kinds[name]]
    if differ:
        was, has = kinds[differ[0]], now[differ[0]]
        part = next(k for k in range(3) if was[k] != has[k])
        wrong.append(f"{_few(differ)} changed from {was[part]} to {has[part]}")
    return wrong


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if names[NAMED:] else "")


def _steps_any(optimizer: Optimizer, weights: Container[Any]) -> bool:
    held = (p for group in optimizer.param_groups for p in group["params"])
    return any(p in weights and p.grad is not None for p in held)


def _where(error: BaseException, spec: str) -> str:
    """The line of the recipe's own file that the error came through last."""
    file = Path(spec.rpartition(":")[0]).name
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == file]
    return f" (in line {lines[-1]})" if lines else ""
