"""What a model's own code may touch while it is only borrowed, and how that is given back.

Beyond modes, buffers and random state (`retain.borrowed`): gradients that a `Function` adds to
`p.grad` by calling backward inside; attributes in which modules keep state from call to call; and
weights that a forward writes to, such as embeddings that are renormalised when they are looked up.
"""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from retain.parameters import address

DEPTH = 4  # containers in containers that are looked into for state
OWN = {"_parameters", "_buffers", "_modules", "training"}  # of a module, and not state
CHANGING = (dict, list, deque, set)  # containers that are looked into
# What most attributes are, and hooks: nothing in them is looked after.
STILL = frozenset({bool, int, float, str, type(None), OrderedDict})
DRAWING = (torch.Generator, random.Random, np.random.Generator)


@contextmanager
def gradients_aside(model: nn.Module) -> Iterator[None]:
    """Without any `p.grad`; those that were there are put back, whatever ran."""
    parameters = list(model.parameters())
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in zip(parameters, before):
            p.grad = grad


def taken_gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What has arrived in `p.grad` by a side door, by name; there is none afterwards."""
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    for name in found:
        parameters[name].grad = None
    return found


# ---- state ----


@contextmanager
def state_aside(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Attributes of modules are put back as they were: tensors, and what is held by others.

    Containers, objects and generators of random numbers hold something.
    """
    before = []
    seen: set[int] = set()  # objects that several modules share, such as a configuration
    for module in modules:
        attributes = {k: v for k, v in vars(module).items() if k not in OWN}
        some = [v for v in attributes.values() if type(v) not in STILL]
        held = [_Attribute.of(v, seen) for v in some if _may_change(v)]
        before.append((vars(module), attributes, held))
    try:
        yield
    finally:
        for own, attributes, held in before:
            for attribute in held:
                attribute.back()
            if len(own) > len(attributes) + len(OWN):
                for name in own.keys() - attributes.keys() - OWN:
                    del own[name]
            own.update(attributes)


def _may_change(value: Any) -> bool:
    """Whether the same object may hold something else later."""
    if type(value) is tuple:
        return any(map(_may_change, value))
    return _holds(_kind(value))


def _kind(value: Any) -> Any:
    """Its type, which may be hashed although type checkers doubt it."""
    return type(value)


@lru_cache(maxsize=512)
def _holds(kind: Any) -> bool:
    """Whether what is of this kind holds something that may be another later."""
    return kind in CHANGING or issubclass(kind, (Tensor, *DRAWING)) or _is_of_objects(kind)


@lru_cache(maxsize=512)
def _is_of_objects(kind: Any) -> bool:
    """Whether these are ordinary objects with attributes: no modules, functions or mappings."""
    others = (Tensor, nn.Module, ModuleType, type, Mapping)
    called = any("__call__" in vars(base) for base in kind.__mro__)
    return bool(kind.__dictoffset__) and not issubclass(kind, others) and not called


@dataclass
class _Attribute:
    """One attribute: the object itself, and what it held where that may change in place."""

    value: Any
    held: Any = None

    @classmethod
    def of(cls, value: Any, seen: set[int], depth: int = 0) -> _Attribute:
        if isinstance(value, nn.Module) or depth > DEPTH:
            return cls(value)
        if isinstance(value, Tensor):
            leaf = value.requires_grad or isinstance(value, nn.Parameter)
            return cls(value, None if leaf else value.detach().clone())
        if type(value) is dict:
            return cls(value, {k: cls.of(v, seen, depth + 1) for k, v in value.items()})
        if type(value) in (list, deque, tuple):
            return cls(value, [cls.of(v, seen, depth + 1) for v in value])
        if type(value) is set:
            return cls(value, set(value))
        if isinstance(value, DRAWING):
            return cls(value, _state_of(value))
        if _is_of_objects(_kind(value)) and id(value) not in seen:
            seen.add(id(value))
            return cls(value, {k: cls.of(v, seen, depth + 1) for k, v in vars(value).items()})
        return cls(value)

    def back(self) -> Any:
        value, held = self.value, self.held
        if isinstance(value, Tensor):
            if held is not None and not torch.equal(value, held):
                with torch.inference_mode(value.is_inference()), torch.no_grad():
                    value.copy_(held)
        elif type(value) is dict and held is not None:
            value.clear()
            value.update({k: one.back() for k, one in held.items()})
        elif type(value) in (list, deque) and held is not None:
            value.clear()
            value.extend(one.back() for one in held)
        elif type(value) is tuple and held is not None:
            for one in held:
                one.back()
        elif type(value) is set and held is not None:
            value.clear()
            value.update(held)
        elif isinstance(value, DRAWING):
            _put_state(value, held)
        elif held is not None and _is_of_objects(_kind(value)):
            vars(value).clear()
            vars(value).update({k: one.back() for k, one in held.items()})
        return value


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return copy.deepcopy(generator.bit_generator.state)


def _put_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state


# ---- weights ----


class Writes(TorchDispatchMode):
    """Notices operations that write to weights, and undoes it at the end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._owner = {at: p for p in model.parameters() if (at := address(p))}
        self._before: dict[int, Tensor] = {}

    @property
    def weights(self) -> list[Tensor]:
        """The weights that were written to."""
        return [self._owner[at] for at in self._before]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable:
            for argument, given in zip(func._schema.arguments, args):
                written = argument.alias_info is not None and argument.alias_info.is_write
                if written and isinstance(given, Tensor):
                    at = address(given)
                    if at in self._owner and at not in self._before:
                        self._before[at] = self._owner[at].detach().clone()
        return func(*args, **(kwargs or {}))

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        with torch.no_grad():
            for at, values in self._before.items():
                self._owner[at].copy_(values)


@contextmanager
def weights_aside(weights: Iterable[Tensor]) -> Iterator[None]:
    """These weights hold afterwards what they held before."""
    before = [(weight, weight.detach().clone()) for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in before:
                weight.copy_(values)


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """Numbers that change when one of them is written to."""
    return [0 if t.is_inference() else t._version for t in tensors]
