"""Methods that are not made part of the graph when `torch.compile` compiles their callers."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Returned = TypeVar("Returned")


def eagerly(method: Callable[..., Returned]) -> Callable[..., Returned]:
    """The same, called as it is where a caller is compiled: its inside is none of their business.

    It looks at weights and counts, which would be traced, and compiled again when they change.
    """

    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Returned:
        if torch.compiler.is_dynamo_compiling():
            apart: Callable[..., Returned] = torch.compiler.disable(method)
            return apart(*args, **kwargs)
        return method(*args, **kwargs)

    return run
